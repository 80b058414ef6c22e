-- Who may make temporary things may put them in the way of functions that have other rights. No function of ours looks
-- there first (tests/database/test_definers.py), so this is the second lock. Whoever is there and is not ours keeps the
-- right, since Supabase's own services may use it; roles to come do not get it.
do $$
declare
  keeper name;
begin
  for keeper in
    select rolname from pg_catalog.pg_roles where rolname !~ '^pg_' and rolname not in ('cimt_api', 'cimt_definer')
  loop
    execute format('grant temporary on database %I to %I', current_database(), keeper);
  end loop;
  execute format('revoke temporary on database %I from public', current_database());
end $$;
