-- search_vectors applies the right to read itself. Under row-level security Postgres lets no operator that is not
-- leakproof run before the policy, and neither `@>` nor `@@` is: both indexes were useless and each search read the table.
-- `security definer` takes the policy away, so the same condition (policy vectors_read) stands in every query below.

-- Loads pgvector's library: only then may a role that is no superuser name its settings in a function.
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
  set hnsw.iterative_scan = 'strict_order'
  set hnsw.ef_search = 100 -- with the default, 40, one in five of the ten nearest of 200,000 passages is missed
  set plan_cache_mode = 'force_custom_plan'
as $$
declare
  me constant uuid := auth.uid();
  every_row constant boolean := coalesce(auth.role() = 'service_role', false);
  filtered constant boolean := sources is not null or metadata_filter is not null;
  wanted constant integer := least(greatest(match_count, 1), 200);
  candidates constant integer := wanted * 2;
  smoothing constant integer := 50;
  few constant integer := 2500;
  config constant regconfig := case query_language
    when 'en' then 'english' when 'pt' then 'portuguese' when 'es' then 'spanish'
    when 'fr' then 'french' when 'de' then 'german' when 'it' then 'italian'
    else 'simple' end::regconfig;
  words tsquery := websearch_to_tsquery(config, query_text);
  seen bigint;
  near_ids bigint[];
  word_ids bigint[];
begin
  if filtered then
    -- Few enough to measure each: exact, and never short of answers. `+ 0` keeps the vector index out.
    select count(*), (array_agg(n.id order by n.distance, n.id))[1:candidates] into seen, near_ids from (
      select v.id, (v.embedding operator(extensions.<=>) query_embedding) + 0 as distance
      from public.vectors v
      where (every_row or v.owner_id is null or v.owner_id = me)
        and (sources is null or v.source = any (sources))
        and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
      limit few + 1) as n;
  end if;
  if not filtered or seen > few then
    select count(*), array_agg(n.id order by n.distance, n.id) into seen, near_ids from (
      select v.id, v.embedding operator(extensions.<=>) query_embedding as distance
      from public.vectors v
      where (every_row or v.owner_id is null or v.owner_id = me)
        and (sources is null or v.source = any (sources))
        and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
      order by v.embedding operator(extensions.<=>) query_embedding limit candidates) as n;
    if seen < candidates then
      -- The index gives up after hnsw.max_scan_tuples rows that may not be read or do not match.
      select array_agg(n.id order by n.distance, n.id) into near_ids from (
        select v.id, (v.embedding operator(extensions.<=>) query_embedding) + 0 as distance
        from public.vectors v
        where (every_row or v.owner_id is null or v.owner_id = me)
          and (sources is null or v.source = any (sources))
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
        select v.id, v.search from public.vectors v
        where v.search operator(pg_catalog.@@) words
          and (every_row or v.owner_id is null or v.owner_id = me)
          and (sources is null or v.source = any (sources))
          and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
        limit 1000) as m
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
    join public.vectors v on v.id = f.id
    order by f.score desc, v.id;
end $$;
