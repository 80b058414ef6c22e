-- Who makes the nightly backup: sees every row, changes none. It cannot log in until `make migrate` has set its password
-- (BACKUP_DATABASE_PASSWORD). On Supabase, from Postgres 16 on, `postgres` may give both rights: it has BYPASSRLS itself,
-- and pg_read_all_data with the admin option.
do $$
begin
  if not (select rolsuper or rolbypassrls from pg_catalog.pg_roles where rolname = current_user)
    or not pg_catalog.pg_has_role(current_user, 'pg_read_all_data', 'member with admin option') then
    raise exception 'cimt_backup cannot be made: % may not give away BYPASSRLS and pg_read_all_data', current_user
      using hint = 'Next: upgrade the project to Postgres 17 (Supabase: Settings, Infrastructure), then make migrate';
  end if;
  if not exists (select from pg_catalog.pg_roles where rolname = 'cimt_backup') then
    create role cimt_backup login nocreatedb nocreaterole connection limit 3;
  end if;
end $$;
-- allow: role-gains: a dump without every row is none, and this role changes nothing
alter role cimt_backup bypassrls;
-- allow: role-gains: it reads all tables, those to come too, and writes none
grant pg_read_all_data to cimt_backup;
alter role cimt_backup set default_transaction_read_only = on;
comment on role cimt_backup is 'The nightly backup. It reads all rows and writes none.';
