-- With `search_path = ''` a function still finds types in pg_temp, and there first: whoever may make temporary things
-- (everybody, by default) could make a domain `text` whose check then ran with the rights of the function's owner. Named
-- last, pg_temp hides nothing. All functions, as those of `auth` and the triggers they call look where they do.
-- The bodies are as they were, but for the names of types.

alter function private.create_profile() set search_path = pg_catalog, pg_temp;
alter function private.touch() set search_path = pg_catalog, pg_temp;
alter function private.export_user(uuid) set search_path = pg_catalog, pg_temp;
alter function private.upsert_vectors(text, uuid, text, jsonb, jsonb, text, integer[], text[], text[], text[])
  set search_path = pg_catalog, pg_temp;

create or replace function private.delete_expired_chats(keep_days integer) returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  deleted bigint;
begin
  if keep_days is null or keep_days < 1 then
    raise exception 'keep_days is %, not a whole number from 1', coalesce(keep_days::pg_catalog.text, 'null');
  end if;
  delete from public.chat_logs where created_at < now() - make_interval(days => keep_days);
  get diagnostics deleted = row_count;
  delete from public.conversations c
  where c.updated_at < now() - make_interval(days => keep_days)
    and not exists (select from public.chat_logs l where l.conversation_id = c.id);
  return deleted;
end $$;

create or replace function private.erase_user(account uuid) returns jsonb
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  counts pg_catalog.jsonb;
begin
  select jsonb_build_object(
    'conversations', (select count(*) from public.conversations where user_id = account),
    'chat_logs', (select count(*) from public.chat_logs where user_id = account),
    'documents', (select count(*) from public.vectors where owner_id = account),
    'account', (select count(*) from auth.users where id = account)) into counts;
  delete from auth.users where id = account;  -- everything else goes with it (on delete cascade)
  return counts;
end $$;

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
  set search_path = pg_catalog, pg_temp
  set hnsw.ef_search = 40
  set hnsw.iterative_scan = 'strict_order'
  set plan_cache_mode = 'force_custom_plan'
as $$
declare
  wanted constant integer := least(greatest(match_count, 1), 200);
  candidates constant integer := wanted * 2;
  smoothing constant integer := 50;
  few constant integer := 5000;
  config constant pg_catalog.regconfig := case query_language
    when 'en' then 'english' when 'pt' then 'portuguese' when 'es' then 'spanish'
    when 'fr' then 'french' when 'de' then 'german' when 'it' then 'italian'
    else 'simple' end::pg_catalog.regconfig;
  words pg_catalog.tsquery := websearch_to_tsquery(config, query_text);
  left_over integer;
  near_ids bigint[];
  word_ids bigint[];
begin
  -- The larger the index, the more of it must be looked at to find the nearest. Ends with the function, as `set` above.
  perform set_config('hnsw.ef_search', greatest(40, least(200, c.reltuples::integer / 200))::pg_catalog.text, true)
  from pg_catalog.pg_class c where c.oid = 'public.vectors'::pg_catalog.regclass;
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
      select string_agg(quote_literal(lexeme), ' | ')::pg_catalog.tsquery
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
