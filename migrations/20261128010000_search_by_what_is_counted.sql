-- A search finds out what its reader may find without counting 2,000 passages, and makes a plan less: at 20,000 passages it
-- takes 1.3 times as long as a bare query of the index for ids, after 1.6. What is asked and what comes back are as they were.

-- Load their libraries: only then may a role that is no superuser name their settings in a function.
select extensions.vector_dims('[1]'::extensions.vector);
select extensions.show_limit();

-- allow: definer-replaced: the same rule of who may read; what is new is how it learns whether that is much
create or replace function private.search_passages(
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
  shared double precision;
  within bigint[];
  near_ids bigint[];
  word_ids bigint[];
begin
  -- All passages, and those of everybody, as they were counted last: by vacuum, analyze or the making of the index.
  select greatest(c.reltuples, few), i.reltuples into total, shared
  from pg_catalog.pg_class c, pg_catalog.pg_class i
  where c.oid = 'public.vectors'::pg_catalog.regclass and i.oid = 'public.vectors_shared'::pg_catalog.regclass;
  -- The larger the index, the more of it must be looked at to find the nearest. Ends with the function, as `set` above.
  perform set_config('hnsw.ef_search', greatest(40, least(200, (total / 200)::integer))::pg_catalog.text, true);
  -- Without a filter it is known whether the reader may find many, or an index tells.
  if everything or sources is not null or metadata_filter is not null
    or shared <= few * 2 and not exists (select from public.vectors v where v.owner_id is null offset few limit 1) and few >= (
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

  perform set_config('plan_cache_mode', 'force_generic_plan', true);  -- a list of ids, whoever asks
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
