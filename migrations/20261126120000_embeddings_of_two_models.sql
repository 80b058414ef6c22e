-- Passages may have an embedding of a second model, so that a change of models takes nothing away while it lasts
-- (`make reembed`), and a search compares those of one model alone.

-- Loads their libraries: only then may a role that is no superuser name their settings in a function.
select extensions.vector_dims('[1]'::extensions.vector);
select extensions.show_limit();

create table private.embeddings (
  id bigint not null references public.vectors (id) on delete cascade,
  model text not null,
  content_hash text not null,
  embedding extensions.halfvec(1536) not null,
  primary key (model, id)
);
alter table private.embeddings alter column embedding set storage plain;  -- as in vectors
comment on table private.embeddings is 'Embeddings of passages by another model than that of vectors, during a change of models.';
comment on column private.embeddings.id is 'The passage.';
comment on column private.embeddings.model is 'The model that made the embedding.';
comment on column private.embeddings.content_hash is 'Of the text that was embedded: counts while it is that of the passage.';
comment on column private.embeddings.embedding is 'The embedding, 1536 numbers of half precision.';
create index embeddings_id on private.embeddings (id);

create table private.served_embeddings (
  model text not null,
  only_one boolean primary key default true check (only_one)
);
comment on table private.served_embeddings is 'The model by whose embeddings passages are found, once `make reembed` has said so.';
comment on column private.served_embeddings.model is 'The model; every passage had an embedding of it when this was written.';
comment on column private.served_embeddings.only_one is 'There is one row.';

-- For the functions below, and for whoever owns them.
alter table private.embeddings enable row level security;
alter table private.served_embeddings enable row level security;
revoke all on private.embeddings, private.served_embeddings from public, anon, authenticated, cimt_api, service_role;

create function private.served_model(wanted text) returns text
  language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  -- Before the first change of models all passages have embeddings of one, as the API asks this before it embeds any.
  select coalesce((
    select coalesce(s.model, v.embedding_model)
    from (select f.embedding_model from public.vectors f order by f.id limit 1) as v
    left join private.served_embeddings s on true), wanted)
$$;
comment on function private.served_model(text) is
  'The model by which a question has to be embedded; `wanted` where there are no passages.';

create function private.search_passages(
  query_embedding extensions.halfvec(1536),
  query_model text,
  query_text text default '',
  match_count integer default 8,
  sources text[] default null,
  metadata_filter jsonb default null
) returns table (id bigint, source text, chunk integer, content text, metadata jsonb, similarity real, score real)
  language plpgsql stable security definer
  set search_path = pg_catalog, pg_temp
  set hnsw.ef_search = 40
  set hnsw.iterative_scan = 'strict_order'
  set pg_trgm.similarity_threshold = 0.2
  set plan_cache_mode = 'force_generic_plan'  -- making a plan takes as long as running it
  set enable_seqscan = on
  set client_min_messages = 'warning'  -- of each word that says nothing the parser gives notice
as $$
declare
  wanted constant integer := least(greatest(match_count, 1), 200);
  candidates constant integer := wanted * 2;
  smoothing constant integer := 50;
  few constant integer := 2000;     -- passages that are all looked at, rather than an index of everybody's
  common constant integer := 500;  -- passages that have a word: with more it finds none, and only adds to the score
  -- Who may find a passage is said in each statement below: as a function of its own it would be called for every row,
  -- since Supabase's advisors want settings on it, and with settings the planner does not put it in the place of its call.
  -- The claims as auth.uid() and auth.role() read them, which the owner of this may not call.
  claims constant pg_catalog.jsonb := coalesce(nullif(current_setting('request.jwt.claims', true), ''), '{}');
  reader constant pg_catalog.uuid := claims ->> 'sub';
  everything constant boolean := coalesce(claims ->> 'role' = 'service_role', false);
  -- Whether some passages have their embedding of this model beside and not in `vectors`.
  beside constant boolean := exists (select from private.embeddings e where e.model = query_model);
  total double precision;
  within bigint[];
  near_ids bigint[];
  word_ids bigint[];
begin
  select greatest(c.reltuples, few) into total from pg_catalog.pg_class c where c.oid = 'public.vectors'::pg_catalog.regclass;
  -- The larger the index, the more of it must be looked at to find the nearest. Ends with the function, as `set` above.
  perform set_config('hnsw.ef_search', greatest(40, least(200, (total / 200)::integer))::pg_catalog.text, true);
  -- Without a filter an index alone tells whether the reader may find many.
  if everything or sources is not null or metadata_filter is not null
    or not exists (select from public.vectors v where v.owner_id is null offset few limit 1) and few >= (
      select count(*) from (
        (select from public.vectors v where v.owner_id is null limit few)
        union all (select from public.vectors v where v.owner_id = reader limit few + 1)) as readable)
  then
    perform set_config('plan_cache_mode', 'force_custom_plan', true);  -- the best way depends on who asks for what
    select array_agg(f.id) into within from (
      select v.id from public.vectors v
      where (everything or v.owner_id is null or v.owner_id = reader)
        and (sources is null or v.source = any (sources))
        and (metadata_filter is null or v.metadata @> metadata_filter)
      limit few + 1) as f;
    if within is null then
      return;
    elsif cardinality(within) <= few then
      total := cardinality(within);
    else
      within := null;
    end if;
  end if;

  if query_embedding is not null then
    perform set_config('plan_cache_mode', 'force_custom_plan', true);
    if within is null and not beside then
      select array_agg(n.id order by n.distance, n.id) into near_ids from (
        select v.id, v.embedding operator(extensions.<=>) query_embedding as distance
        from public.vectors v
        where v.embedding_model = query_model and (everything or v.owner_id is null or v.owner_id = reader)
          and (sources is null or v.source = any (sources))
          and (metadata_filter is null or v.metadata @> metadata_filter)
        order by v.embedding operator(extensions.<=>) query_embedding limit candidates) as n;
    end if;
    if coalesce(cardinality(near_ids), 0) < candidates then
      -- Few enough to measure each, or some lie beside, or the index gave up after hnsw.max_scan_tuples rows that may not
      -- be read or do not match. Exact, and never short of answers; `+ 0` keeps the index out.
      select array_agg(n.id order by n.distance, n.id) into near_ids from (
        select v.id, (case when v.embedding_model = query_model then v.embedding else e.embedding end
          operator(extensions.<=>) query_embedding) + 0 as distance
        from public.vectors v
        left join private.embeddings e
          on beside and e.id = v.id and e.model = query_model and e.content_hash = v.content_hash
        where (v.embedding_model = query_model or e.id is not null) and (v.id = any (within)
          or within is null and (everything or v.owner_id is null or v.owner_id = reader)
            and (sources is null or v.source = any (sources))
            and (metadata_filter is null or v.metadata @> metadata_filter))
        order by 2, 1 limit candidates) as n;
    end if;
  end if;

  if query_text ~ '\S' then
    -- As words lie outside of their rows (TOAST), the planner takes reading all for cheap. Ends with the function, too.
    perform set_config('enable_seqscan', 'off', true);
    -- Only a plan made for this very list looks passages up in it by hash.
    perform set_config(
      'plan_cache_mode', case when within is null then 'force_generic_plan' else 'force_custom_plan' end, true);
    -- Each word of the question finds the passages that have it, by either stemmer; the rarer it is, the more it counts.
    with asked as materialized (
      select q.place, q.word, q.query from (
        select min(w.place) as place, w.word, private.stemmed_query(w.word) as query
        from string_to_table(regexp_replace(query_text, '[\s/_]+', ' ', 'g'), ' ') with ordinality as w (word, place)
        group by w.word offset 0) as q
      where numnode(q.query) > 0
      order by q.place limit 32),
    -- A word that no text has was perhaps misspelt: what is alike, a letter or two away, is meant.
    meant as materialized (
      select e.place, l.query
      from (
        select a.place, a.word from asked a
        where not exists (select from private.passage_words p where p.words @@ a.query)
        order by a.place limit 8) as e
      cross join lateral (
        select string_agg(
          private.stemmed_query(k.word)::pg_catalog.text, ' | ')::pg_catalog.tsquery as query
        from (
          select o.word, rank() over (partition by o.asked order by o.distance) as nearness
          from (
            select distinct m.word as asked, s.word,
              extensions.levenshtein_less_equal(m.word, s.word, 2) as distance
            from (
              select w.word from unnest(private.plain_words(e.word)) as w (word)
              where length(w.word) between 4 and 30
                and not exists (select from private.vocabulary k where k.word = w.word) offset 0) as m
            join private.vocabulary s on s.word operator(extensions.%) m.word) as o
          where o.distance <= case when length(o.asked) < 5 then 1 else 2 end) as k
        where k.nearness = 1 and numnode(private.stemmed_query(k.word)) > 0) as l
      where l.query is not null),
    found as materialized (
      select t.query, array(
        select p.id from private.passage_words p
        where p.words @@ t.query and (p.id = any (within)
          or within is null and (everything or p.owner_id is null or p.owner_id = reader)
            and (sources is null and metadata_filter is null or exists (
              select from public.vectors v where v.id = p.id
                and (sources is null or v.source = any (sources))
                and (metadata_filter is null or v.metadata @> metadata_filter))))
        limit common + 1) as ids
      from (select coalesce(m.query, a.query) as query from asked a left join meant m using (place)) as t),
    weighed as materialized (
      select f.query, f.ids, cardinality(f.ids) > common as everywhere,
        ln((greatest(total, cardinality(f.ids)) + 1) / (cardinality(f.ids) + 0.5)) as weight
      from found f where cardinality(f.ids) > 0),
    best as (
      select i.id, sum(w.weight) as score
      from weighed w cross join lateral unnest(w.ids) as i (id)
      where not w.everywhere or not exists (select from weighed o where not o.everywhere)
      group by i.id order by 2 desc, 1 limit greatest(50, candidates))
    select array_agg(r.id order by r.score desc, r.id) into word_ids from (
      -- A title counts most, and what is said often.
      select b.id, (
        select sum(w.weight * case when w.everywhere then 0.5 else 1 end
          * (1 + ts_rank('{0.5, 0.5, 0.5, 1}', u.words, w.query)))
        from weighed w where u.words @@ w.query) as score
      from best b join private.passage_words p on p.id = b.id
      cross join lateral (select p.words || '' as words offset 0) as u  -- unpacked once, not for each word
      order by 2 desc, 1 limit candidates) as r;
  end if;

  return query
    select v.id, v.source, v.chunk, v.content, v.metadata,
      (1 - (case when v.embedding_model = query_model then v.embedding else e.embedding end
        operator(extensions.<=>) query_embedding))::real,
      f.score::real
    from (
      select coalesce(n.id, w.id) as id,
        coalesce(1.0 / (smoothing + n.place), 0) + coalesce(1.0 / (smoothing + w.place), 0) as score
      from unnest(near_ids) with ordinality as n (id, place)
      full join unnest(word_ids) with ordinality as w (id, place) on n.id = w.id
      order by 2 desc, 1 limit wanted) as f
    join public.vectors v on v.id = f.id
    left join private.embeddings e
      on beside and e.id = v.id and e.model = query_model and e.content_hash = v.content_hash
    -- What words alone found has no embedding of this model only while one is being made: it cannot be compared.
    where query_embedding is null or v.embedding_model = query_model or e.id is not null
    order by f.score desc, v.id;
end $$;
comment on function private.search_passages(extensions.halfvec, text, text, integer, text[], jsonb) is
  'What the request''s user may read of the passages nearest to an embedding of this model, and of those that have its words.';

-- allow: definer-replaced: what it was, by the function above; its callers name no model, and get the one that is served
create or replace function public.search_vectors(
  query_embedding extensions.halfvec(1536),
  query_text text default '',
  match_count integer default 8,
  sources text[] default null,
  metadata_filter jsonb default null,
  query_language text default 'simple'
) returns table (id bigint, source text, chunk integer, content text, metadata jsonb, similarity real, score real)
  language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select * from private.search_passages(
    query_embedding, private.served_model(''), query_text, match_count, sources, metadata_filter)
$$;

revoke all on function private.served_model(text),
  private.search_passages(extensions.halfvec, text, text, integer, text[], jsonb) from public;
grant execute on function private.served_model(text),
  private.search_passages(extensions.halfvec, text, text, integer, text[], jsonb) to cimt_api, service_role;

-- To the owner who may do little. Not so search_vectors: Supabase owns `public`, where `postgres` may not let others make
-- things for sure. Nor export_user and erase_user: what they are about, auth.users, is for `postgres` alone to touch.
grant usage on schema extensions to cimt_definer;
grant select on public.vectors, private.embeddings, private.served_embeddings to cimt_definer;
grant select, insert, update, delete on private.passage_words, private.vocabulary to cimt_definer;
grant execute on function private.stemmed(text), private.stemmed_query(text),
  private.plain_words(text) to cimt_definer;
grant create on schema private to cimt_definer;
alter function private.served_model(text) owner to cimt_definer;
alter function private.search_passages(extensions.halfvec, text, text, integer, text[], jsonb) owner to cimt_definer;
alter function private.keep_words() owner to cimt_definer;
revoke create on schema private from cimt_definer;
