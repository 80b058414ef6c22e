-- What runs with its owner's rights has an owner who may do little, and each request is asked one policy.

-- Owner of functions that need more than their callers have, and no more than this. Nobody logs in as it.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'cimt_definer') then
    create role cimt_definer nologin noinherit;
  end if;
end $$;
-- allow: role-gains: it reads chats of all users to delete the old ones, and its functions do nothing else with that
alter role cimt_definer bypassrls;
comment on role cimt_definer is 'Owns functions with rights that their callers have not; nobody logs in as it.';
-- Migrations go on replacing its functions.
grant cimt_definer to postgres with inherit true, set true;

grant usage on schema public, private to cimt_definer;
grant select, insert on public.users to cimt_definer;
grant select, delete on public.conversations, public.chat_logs to cimt_definer;

-- To be given something in a schema one must be able to make it there; for as long as that takes.
grant create on schema private to cimt_definer;
alter function private.create_profile() owner to cimt_definer;
alter function private.delete_expired_chats(integer) owner to cimt_definer;
revoke create on schema private from cimt_definer;

-- Supabase's advisors: with two policies for one role and command both are asked for each row.
-- allow: open-policy: the claim is set by the API alone, for its ingest routes
alter policy vectors_read on public.vectors
  using (owner_id is null or owner_id = (select auth.uid()) or (select auth.role()) = 'service_role');
drop policy vectors_ingest on public.vectors;
-- The API sets this claim for its ingest routes alone, which ask for the service credential.
-- allow: open-policy: ingest writes the documents of every user
create policy vectors_add on public.vectors for insert to cimt_api
  with check ((select auth.role()) = 'service_role');
-- allow: open-policy: ingest writes the documents of every user
create policy vectors_change on public.vectors for update to cimt_api
  using ((select auth.role()) = 'service_role') with check ((select auth.role()) = 'service_role');
-- allow: open-policy: ingest deletes the documents of every user
create policy vectors_remove on public.vectors for delete to cimt_api
  using ((select auth.role()) = 'service_role');
