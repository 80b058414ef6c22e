-- A second login of the API, so that its password changes without a moment in which none is good: each has a password of
-- its own, API_DATABASE_URL names the one in use. Its sessions are cimt_api's from their first statement on: rights,
-- policies and what a function sees are the same. It cannot log in until `make migrate` has set its password.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'cimt_api_b') then
    create role cimt_api_b login noinherit nocreatedb nocreaterole nobypassrls connection limit 30;
  end if;
end $$;
-- allow: role-gains: it is the API's other login, and has nothing beside
grant cimt_api to cimt_api_b;
alter role cimt_api_b set role to 'cimt_api';
comment on role cimt_api_b is 'The other login of the API (make rotate). Its sessions are cimt_api''s.';
