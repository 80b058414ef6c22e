-- Hybrid search (nearest embeddings and matching words, joined by reciprocal rank fusion), and the rights of a person.

-- Loads pgvector's library: only then may a role that is no superuser name its settings in a function.
select extensions.vector_dims('[1]'::extensions.vector);

-- plpgsql, because the plan depends on how many passages the filter leaves. The rights are the caller's.
-- Read ahead of time by nobody: `stable` and without side effects.
create function public.search_vectors(
  query_embedding extensions.halfvec(1536),
  query_text text default '',
  match_count integer default 8,
  sources text[] default null,
  metadata_filter jsonb default null,
  query_language text default 'simple'
) returns table (id bigint, source text, chunk integer, content text, metadata jsonb, similarity real, score real)
  language plpgsql stable security invoker
  set search_path = ''
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
  if sources is not null or metadata_filter is not null then
    select count(*) into left_over from (
      select from public.vectors v
      where (sources is null or v.source = any (sources))
        and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
      limit few + 1) as bounded;
  end if;
  if left_over <= few then
    -- Few enough to measure each: exact, and never short of answers. `+ 0` keeps the index out.
    select array_agg(n.id order by n.distance, n.id) into near_ids from (
      select v.id, (v.embedding operator(extensions.<=>) query_embedding) + 0 as distance
      from public.vectors v
      where (sources is null or v.source = any (sources))
        and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
      order by 2 limit candidates) as n;
  else
    select array_agg(n.id order by n.distance, n.id) into near_ids from (
      select v.id, v.embedding operator(extensions.<=>) query_embedding as distance
      from public.vectors v
      where (sources is null or v.source = any (sources))
        and (metadata_filter is null or v.metadata operator(pg_catalog.@>) metadata_filter)
      order by v.embedding operator(extensions.<=>) query_embedding limit candidates) as n;
  end if;
  for attempt in 1..2 loop
    exit when numnode(words) = 0;
    -- Ranking reads each match, so that a word found everywhere must not bring all of them.
    select array_agg(w.id order by w.rank desc, w.id) into word_ids from (
      select m.id, ts_rank_cd(m.search, words) as rank
      from (
        select v.id, v.search from public.vectors v
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
    join public.vectors v on v.id = f.id
    order by f.score desc, v.id;
end $$;
comment on function public.search_vectors(extensions.halfvec, text, integer, text[], jsonb, text) is
  'The passages that fit a question best, among those that the caller may read.';
revoke all on function public.search_vectors(extensions.halfvec, text, integer, text[], jsonb, text) from public, anon;
grant execute on function public.search_vectors(extensions.halfvec, text, integer, text[], jsonb, text)
  to authenticated, cimt_api, service_role;

create function private.export_user(account uuid) returns jsonb
  language sql stable security definer set search_path = '' as $$
  select jsonb_build_object(
    'exported_at', now(),
    'account', (select jsonb_build_object('id', a.id, 'email', a.email, 'created_at', a.created_at)
      from auth.users a where a.id = account),
    'profile', (select to_jsonb(u) from public.users u where u.id = account),
    'conversations', coalesce((select jsonb_agg(to_jsonb(c) order by c.created_at)
      from public.conversations c where c.user_id = account), '[]'),
    'chat_logs', coalesce((select jsonb_agg(to_jsonb(l) order by l.created_at)
      from public.chat_logs l where l.user_id = account), '[]'),
    'documents', coalesce((select jsonb_agg(to_jsonb(v) - 'embedding' - 'search' order by v.source, v.chunk)
      from public.vectors v where v.owner_id = account), '[]'))
$$;
comment on function private.export_user(uuid) is 'All that is kept about one person, as one JSON document.';
revoke all on function private.export_user(uuid) from public;
grant execute on function private.export_user(uuid) to service_role;

create function private.erase_user(account uuid) returns jsonb
  language plpgsql security definer set search_path = '' as $$
declare
  counts jsonb;
begin
  select jsonb_build_object(
    'conversations', (select count(*) from public.conversations where user_id = account),
    'chat_logs', (select count(*) from public.chat_logs where user_id = account),
    'documents', (select count(*) from public.vectors where owner_id = account),
    'account', (select count(*) from auth.users where id = account)) into counts;
  delete from auth.users where id = account;  -- everything else goes with it (on delete cascade)
  return counts;
end $$;
comment on function private.erase_user(uuid) is 'Deletes one person''s account and all that belongs to it; returns how many rows of each.';
revoke all on function private.erase_user(uuid) from public;
grant execute on function private.erase_user(uuid) to service_role;
