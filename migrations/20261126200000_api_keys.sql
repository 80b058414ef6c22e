-- Programs ask in their user's name, users say what an answer was worth, and cached tokens are counted.

create table public.api_keys (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  name text not null check (char_length(name) between 1 and 100),
  hash text not null unique check (hash ~ '^[0-9a-f]{64}$'),
  hint text not null check (char_length(hint) <= 8),
  created_at timestamptz not null default now(),
  last_used_at timestamptz
);
comment on table public.api_keys is 'Keys by which programs ask in their user''s name, and nothing else.';
comment on column public.api_keys.id is 'By which its user revokes it.';
comment on column public.api_keys.user_id is 'Whose it is.';
comment on column public.api_keys.name is 'What its user calls it.';
comment on column public.api_keys.hash is 'SHA-256 of the key, in hexadecimal; the key itself has 256 random bits and is kept nowhere.';
comment on column public.api_keys.hint is 'Its last characters, to tell keys apart.';
comment on column public.api_keys.created_at is 'When it was made.';
comment on column public.api_keys.last_used_at is 'When it was used last, to the minute.';
create index api_keys_user_id on public.api_keys (user_id);

alter table public.api_keys enable row level security;
revoke all on public.api_keys from anon, authenticated;
grant select, insert, delete on public.api_keys to cimt_api;
grant select, insert, update, delete on public.api_keys to service_role;
create policy api_keys_own on public.api_keys to cimt_api
  using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));

-- Whoever brings a key says only by it who they are, so it is looked up before there are claims.
grant select, update (last_used_at) on public.api_keys to cimt_definer;
create function private.use_api_key(key_hash text) returns uuid
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  found_id pg_catalog.uuid;
  owner_id pg_catalog.uuid;
  used pg_catalog.timestamptz;
begin
  select id, user_id, last_used_at into found_id, owner_id, used from public.api_keys where hash = key_hash;
  if used is null or used < now() - make_interval(mins => 1) then
    update public.api_keys set last_used_at = now() where id = found_id;
  end if;
  return owner_id;
end $$;
comment on function private.use_api_key(text) is 'The user of the key of this hash, or null; notes that it was used.';
revoke all on function private.use_api_key(text) from public;
grant execute on function private.use_api_key(text) to cimt_api;
grant create on schema private to cimt_definer;
alter function private.use_api_key(text) owner to cimt_definer;
revoke create on schema private from cimt_definer;

alter table public.chat_logs
  add column cached_tokens integer check (cached_tokens >= 0),
  add column rating text check (rating in ('up', 'down')),
  add column feedback text check (char_length(feedback) <= 2000);
comment on column public.chat_logs.cached_tokens is 'Of the prompt''s tokens, those that the model''s service had in its cache.';
comment on column public.chat_logs.rating is 'Whether its user found the answer good: up, down; null: has not said.';
comment on column public.chat_logs.feedback is 'What its user says about the answer.';

-- allow: definer-replaced: keys are what is kept of a person too; their hashes stay here
create or replace function private.export_user(account uuid) returns jsonb
  language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'exported_at', now(),
    'account', (select jsonb_object_agg(e.key, e.value) from auth.users a, jsonb_each(to_jsonb(a)) e
      where a.id = account and e.key !~ 'password|token'),
    'profile', (select to_jsonb(u) from public.users u where u.id = account),
    'conversations', coalesce((select jsonb_agg(to_jsonb(c) order by c.created_at)
      from public.conversations c where c.user_id = account), '[]'),
    'chat_logs', coalesce((select jsonb_agg(to_jsonb(l) order by l.created_at)
      from public.chat_logs l where l.user_id = account), '[]'),
    'api_keys', coalesce((select jsonb_agg(to_jsonb(k) - 'hash' order by k.created_at)
      from public.api_keys k where k.user_id = account), '[]'),
    'documents', coalesce((select jsonb_agg(to_jsonb(v) - 'embedding' - 'search' order by v.source, v.chunk)
      from public.vectors v where v.owner_id = account), '[]'))
$$;
