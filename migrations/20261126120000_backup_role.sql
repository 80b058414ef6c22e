-- Who makes the nightly backup: sees every row, changes none. It cannot log in until `make migrate` has set its password
-- (BACKUP_DATABASE_PASSWORD). On Supabase, Postgres 16 and later, `postgres` may give both: it has BYPASSRLS itself, and
-- pg_read_all_data with the admin option.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'cimt_backup') then
    create role cimt_backup login nocreatedb nocreaterole bypassrls connection limit 3;
  end if;
  grant pg_read_all_data to cimt_backup;
exception when insufficient_privilege then
  raise exception 'cimt_backup cannot be made: % is not allowed to give away BYPASSRLS and pg_read_all_data', current_user
    using hint = 'Next: upgrade the project to Postgres 17 (Supabase: Settings, Infrastructure), then make migrate';
end $$;
alter role cimt_backup set default_transaction_read_only = on;
comment on role cimt_backup is 'The nightly backup. It reads all rows and writes none.';
