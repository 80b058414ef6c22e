-- When retention ran last and what it removed stays to be read; and a person's export has all that the account holds.

create table private.retention_runs (
  ran_at timestamptz primary key default clock_timestamp(),
  keep_days integer not null,
  answers bigint not null,
  conversations bigint not null
);
comment on table private.retention_runs is 'What each run of retention removed; kept for two years.';
comment on column private.retention_runs.ran_at is 'When it ran.';
comment on column private.retention_runs.keep_days is 'Answers that were older than this many days were deleted.';
comment on column private.retention_runs.answers is 'How many answers that were.';
comment on column private.retention_runs.conversations is 'How many conversations were left empty by that, and went too.';
alter table private.retention_runs enable row level security;
revoke all on private.retention_runs from public, anon, authenticated;
grant select on private.retention_runs to cimt_api, service_role;
-- allow: open-policy: numbers about nobody
create policy retention_runs_read on private.retention_runs for select to cimt_api using (true);
grant select, insert, delete on private.retention_runs to cimt_definer;

-- allow: definer-replaced: deletes what it did, and notes how much that was
create or replace function private.delete_expired_chats(keep_days integer) returns bigint
  language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  deleted bigint;
  emptied bigint;
begin
  if keep_days is null or keep_days < 1 then
    raise exception 'keep_days is %, not a whole number from 1', coalesce(keep_days::pg_catalog.text, 'null');
  end if;
  delete from public.chat_logs where created_at < now() - make_interval(days => keep_days);
  get diagnostics deleted = row_count;
  delete from public.conversations c
  where c.updated_at < now() - make_interval(days => keep_days)
    and not exists (select from public.chat_logs l where l.conversation_id = c.id);
  get diagnostics emptied = row_count;
  delete from private.retention_runs where ran_at < now() - interval '2 years';
  insert into private.retention_runs (keep_days, answers, conversations) values (keep_days, deleted, emptied);
  return deleted;
end $$;

-- allow: definer-replaced: more of the same person's row, without what signs in
create or replace function private.export_user(account uuid) returns jsonb
  language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'exported_at', now(),
    -- All that Supabase keeps there, whichever columns come; but passwords and tokens are no use to anybody but a thief.
    'account', (select jsonb_object_agg(e.key, e.value) from auth.users a, jsonb_each(to_jsonb(a)) e
      where a.id = account and e.key !~ 'password|token'),
    'profile', (select to_jsonb(u) from public.users u where u.id = account),
    'conversations', coalesce((select jsonb_agg(to_jsonb(c) order by c.created_at)
      from public.conversations c where c.user_id = account), '[]'),
    'chat_logs', coalesce((select jsonb_agg(to_jsonb(l) order by l.created_at)
      from public.chat_logs l where l.user_id = account), '[]'),
    'documents', coalesce((select jsonb_agg(to_jsonb(v) - 'embedding' - 'search' order by v.source, v.chunk)
      from public.vectors v where v.owner_id = account), '[]'))
$$;
comment on function private.erase_user(uuid) is 'Was what `make user-erase` called, which asks Supabase Auth now.';
