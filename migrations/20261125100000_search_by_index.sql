-- The same search, by the indexes for everybody. Under row level security an operator that is not leakproof (`@@`
-- and `@>` are none) may not serve an index scan before the policy has been asked: the API's search read every row.
-- The function reads with its owner's rights now, and the rule of the policies stands in the view below.

-- Two rows a page: what is small stays beside the embedding, where a filter finds it. By default everything but the
-- embedding went outside (TOAST), at two more look-ups a row. For rows written from now on.
alter table public.vectors set (toast_tuple_target = 4032);

create view private.readable_vectors as
  select v.id, v.source, v.chunk, v.content, v.metadata, v.embedding, v.search
  from public.vectors v
  where v.owner_id is null
    or v.owner_id = (select auth.uid())
    or (select auth.role()) = 'service_role';
comment on view private.readable_vectors is
  'The passages that the request''s user may read, as the policies of vectors say; for search_vectors alone.';
revoke all on private.readable_vectors from public;

-- Loads pgvector's library, as 20261124040000 says: without it the function's settings may not be named.
select extensions.vector_dims('[1]'::extensions.vector);

create or replace function public.search_vectors(
  query_embedding extensions.halfvec(1536),
  query_text text default '',
  match_count integer default 8,
  sources text[] default null,
  metadata_filter jsonb default null,
  query_language text default 'simple'
) returns table (id bigint, source text, chunk integer, content text, metadata jsonb, similarity real, score real)
  language plpgsql stable security definer
  set search_path = ''
  set hnsw.ef_search = 40
  set hnsw.iterative_scan = 'strict_order'
  set plan_cache_mode = 'force_custom_plan'
as $$
declare
  wanted constant integer := least(greatest(match_count, 1), 200);
  candidates constant integer := wanted * 2;
  smoothing constant integer := 50;
  few constant integer := 5000;
  config constant regconfig := case query_language
    when 'en' then 'english' when 'pt' then 'portuguese' when 'es' then 'spanish'
    when 'fr' then 'french' when 'de' then 'german' when 'it' then 'italian'
    else 'simple' end::regconfig;
  words tsquery := websearch_to_tsquery(config, query_text);
  left_over integer;
  near_ids bigint[];
  word_ids bigint[];
begin
  -- The larger the index, the more of it must be looked at to find the nearest. Ends with the function, as `set` above.
  perform set_config('hnsw.ef_search', greatest(40, least(200, c.reltuples::integer / 200))::text, true)
  from pg_catalog.pg_class c where c.oid = 'public.vectors'::regclass;
  if sources is not null or metadata_filter is not null then
    select count(*) into left_over from (
      select from private.readable_vectors v
      where (sources is null or v.source = any (sources))
        and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
      limit few + 1) as bounded;
  end if;
  if left_over <= few then
    -- Few enough to measure each: exact, and never short of answers. `+ 0` keeps the index out.
    select array_agg(n.id order by n.distance, n.id) into near_ids from (
      select v.id, (v.embedding operator(extensions.<=>) query_embedding) + 0 as distance
      from private.readable_vectors v
      where (sources is null or v.source = any (sources))
        and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
      order by 2 limit candidates) as n;
  else
    select array_agg(n.id order by n.distance, n.id) into near_ids from (
      select v.id, v.embedding operator(extensions.<=>) query_embedding as distance
      from private.readable_vectors v
      where (sources is null or v.source = any (sources))
        and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
      order by v.embedding operator(extensions.<=>) query_embedding limit candidates) as n;
    if coalesce(cardinality(near_ids), 0) < candidates then
      -- The index gives up after hnsw.max_scan_tuples rows that may not be read or do not match.
      select array_agg(n.id order by n.distance, n.id) into near_ids from (
        select v.id, (v.embedding operator(extensions.<=>) query_embedding) + 0 as distance
        from private.readable_vectors v
        where (sources is null or v.source = any (sources))
          and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
        order by 2 limit candidates) as n;
    end if;
  end if;
  for attempt in 1..2 loop
    exit when numnode(words) = 0;
    -- Ranking reads each match, so that a word found everywhere must not bring all of them.
    select array_agg(w.id order by w.rank desc, w.id) into word_ids from (
      select m.id, ts_rank_cd(m.search, words) as rank
      from (
        select v.id, v.search from private.readable_vectors v
        where v.search operator(pg_catalog.@@) words
          and (sources is null or v.source = any (sources))
          and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
        limit 2000) as m
      order by 2 desc, 1 limit candidates) as w;
    exit when word_ids is not null;
    -- No passage has all the words: any of them will do.
    words := (
      select string_agg(quote_literal(lexeme), ' | ')::tsquery
      from unnest(tsvector_to_array(to_tsvector(config, query_text))) as lexeme);
    exit when words is null;
  end loop;
  return query
    select v.id, v.source, v.chunk, v.content, v.metadata,
      (1 - (v.embedding operator(extensions.<=>) query_embedding))::real,
      f.score::real
    from (
      select coalesce(n.id, w.id) as id,
        coalesce(1.0 / (smoothing + n.place), 0) + coalesce(1.0 / (smoothing + w.place), 0) as score
      from unnest(near_ids) with ordinality as n (id, place)
      full join unnest(word_ids) with ordinality as w (id, place) on n.id = w.id
      order by 2 desc, 1 limit wanted) as f
    join private.readable_vectors v on v.id = f.id
    order by f.score desc, v.id;
end $$;
