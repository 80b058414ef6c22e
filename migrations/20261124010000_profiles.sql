-- The API's own role, and a profile for every account from the moment of sign-up.

-- Log-in role of the API: no membership, no BYPASSRLS. It cannot log in until `make migrate` has set its password
-- (API_DATABASE_PASSWORD). The block makes the file work where a role of that name is left from another database.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'cimt_api') then
    create role cimt_api login noinherit nocreatedb nocreaterole nobypassrls connection limit 30;
  end if;
end $$;
comment on role cimt_api is 'The API. It sees rows as the user named in request.jwt.claims.';
grant usage on schema public, extensions to cimt_api;

-- Not in `public`: what stands there is offered by the Data API.
create schema private;
comment on schema private is 'Functions that no client calls by itself.';
revoke all on schema private from public;

create function private.create_profile() returns trigger
  language plpgsql security definer set search_path = '' as $$
begin
  -- Sign-up must never fail because of the profile.
  insert into public.users (id) values (new.id) on conflict (id) do nothing;
  return new;
end $$;
comment on function private.create_profile() is 'Trigger of auth.users: the profile of a new account.';
revoke all on function private.create_profile() from public;

create trigger create_profile after insert on auth.users
  for each row execute function private.create_profile();

-- Accounts from before this migration.
insert into public.users (id) select id from auth.users on conflict (id) do nothing;

create function private.touch() returns trigger
  language plpgsql set search_path = '' as $$
begin
  new.updated_at := now();
  return new;
end $$;
comment on function private.touch() is 'Trigger: updated_at is the time of the last change.';
revoke all on function private.touch() from public;

create trigger touch before update on public.users
  for each row execute function private.touch();

grant select, update (display_name) on public.users to cimt_api;
alter policy users_read_own on public.users to authenticated, cimt_api;
alter policy users_update_own on public.users to authenticated, cimt_api;
