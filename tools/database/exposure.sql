-- (rule, object, text). Objects of extensions, and of a new project, are not ours: the caller leaves out what was there.
with space as (
  select oid, nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'),
relation as (
  select c.*, n.nspname, n.nspname || '.' || c.relname as name, exists (
    select from unnest(array['anon', 'authenticated']) r where has_any_column_privilege(r, c.oid, 'select')) as readable
  from pg_class c join space n on n.oid = c.relnamespace where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype = 'e')),
routine as (
  select p.*, n.nspname, n.nspname || '.' || p.proname as name, n.nspname || '.' || p.proname || '('
    || array_to_string(p.proargtypes::regtype[], ', ') || ')' as whole, l.lanname
  from pg_proc p join space n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
  where not exists (select from pg_depend where classid = 'pg_proc'::regclass and objid = p.oid and deptype = 'e')),
leans as (  -- views, and all that they read
  select distinct r.ev_class as view, d.refobjid as on
  from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
    and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class),
grants as (
  select grantee, privilege_type, 'table' as what, name, relnamespace as at from relation, aclexplode(relacl)
  union select a.grantee, a.privilege_type, 'table', c.name, relnamespace
    from relation c join pg_attribute f on f.attrelid = c.oid, aclexplode(f.attacl) a
  union select grantee, privilege_type, 'schema', nspname, 0 from pg_namespace, aclexplode(nspacl)
    where nspname !~ '^pg_' and nspname not in ('information_schema', 'public')
  union select grantee, privilege_type, 'function', whole, pronamespace from routine, aclexplode(proacl) where grantee <> 0)
select 'no-row-security', name, name || ' is open. Next: alter table ' || name || ' enable row level security'
  from relation where relkind in ('r', 'p', 'f') and not relrowsecurity and (nspname = 'public' or readable)
union all
select 'no-grant', name, 'nobody may use ' || name || '. Next: grant … on ' || name || ' to …'
  from relation where relkind in ('r', 'p') and nspname = 'public' and not exists (
    select from pg_roles r where not rolsuper and rolname !~ '^pg_' and r.oid <> relowner and (
      has_any_column_privilege(r.oid, relation.oid, 'select, insert, update') or has_table_privilege(r.oid, relation.oid, 'delete')))
union all
select 'no-comment', name, 'Next: comment on … ' || name || ' is ''…''' from (
  select name, obj_description(oid, 'pg_class') from relation where relkind <> 'S'
  union all select c.name || '.' || a.attname, col_description(c.oid, a.attnum)
    from relation c join pg_attribute a on a.attrelid = c.oid
    where relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped
  union all select name, obj_description(oid, 'pg_proc') from routine
  union all select nspname, obj_description(oid, 'pg_namespace') from space) as thing (name, comment)
  where coalesce(comment, '') = ''
union all
select 'public-function', whole, 'everybody may call ' || whole || '. Next: revoke all on function ' || whole || ' from public'
  from routine where exists (
    select from aclexplode(coalesce(proacl, acldefault('f', proowner))) where grantee = 0)
union all
select 'search-path', whole, whole || ' finds the types of its caller first. Next: set search_path = pg_catalog, pg_temp'
  from routine where lanname in ('sql', 'plpgsql') and prokind <> 'a' and not exists (
    select from unnest(proconfig) s where s ~ '^search_path=(.*, )?"?pg_temp"?$')
union all
select 'definer-callable', whole, 'who signs up may call ' || whole || ', which has its owner''s rights'
  from routine where prosecdef and has_function_privilege('authenticated', oid, 'execute')
    and has_schema_privilege('authenticated', pronamespace, 'usage')
union all
select 'anon', what || ' ' || name, 'who has not signed in may ' || lower(privilege_type) || ' ' || name
  from grants where grantee = 'anon'::regrole or grantee = 0 and what = 'table'
union all
select 'definer-view', name, name || ' shows rows by its owner''s rights. Next: alter view ' || name || ' set (security_invoker = true)'
  from relation where relkind = 'v' and readable and not coalesce(reloptions::text ~* 'security_invoker=(true|on|1|yes)', false)
union all
select 'materialized-view', name, name || ' has no row level security. Next: revoke all on ' || name || ' from anon, authenticated'
  from relation where relkind = 'm' and readable
union all
select 'auth-exposed', r.name, r.name || ' shows what stands in ' || u.nspname || '.' || u.relname from relation r, lateral (
  with recursive all_of (id) as (
    select "on" from leans where view = r.oid union select l."on" from leans l join all_of a on l.view = a.id)
  select distinct n.nspname, c.relname from all_of join pg_class c on c.oid = id join space n on n.oid = c.relnamespace
  where n.nspname in ('auth', 'vault')) u where r.readable
union all
select 'default-privileges', d.defaclrole::regrole || ' ' || coalesce(d.defaclnamespace::regnamespace::text, '') || ' '
    || d.defaclobjtype::text || ' ' || a.grantee || a.privilege_type,
  case when a.grantee = 0 then 'everybody' else a.grantee::regrole::text end || ' gets ' || lower(a.privilege_type)
    || ' on whatever is made from now on. Next: grant it where it is meant'
  from pg_default_acl d, aclexplode(d.defaclacl) a where a.grantee <> d.defaclrole
    and not (a.grantee = 0 and d.defaclnamespace = 0 and d.defaclobjtype in ('f', 'T'))
union all
select 'role-gains', rolname || ' ' || gain, rolname || ' has ' || gain || ' from now on' from pg_roles, unnest(array[
  case when rolsuper then 'superuser' end, case when rolbypassrls then 'bypassrls' end, case when rolcreaterole then 'createrole' end,
  case when rolcreatedb then 'createdb' end, case when rolreplication then 'replication' end]) gain where gain is not null
union all
select 'role-gains', member::regrole || ' ' || roleid::regrole, member::regrole || ' has the rights of ' || roleid::regrole
  from pg_auth_members where member <> 'postgres'::regrole and member::regrole::text !~ '^pg_'
union all
select 'role-gains', name || ' ' || relowner::regrole, relowner::regrole || ' owns ' || name || ', whose policies do not hold for it'
  from relation where relowner::regrole::text in ('anon', 'authenticated', 'service_role', 'cimt_api')
union all
select 'schema-create', r || ' ' || nspname, r || ' may put things into the schema ' || nspname
  from space, unnest(array['anon', 'authenticated', 'service_role', 'cimt_api']) r
  where to_regrole(r) is not null and has_schema_privilege(r, oid, 'create')
union all
select 'foreign-key-index', name || ' ' || k.conname, 'deleting what ' || name || ' refers to reads all of it. Next: create index on '
    || name || ' (' || (select string_agg(attname, ', ') from pg_attribute where attrelid = k.conrelid and attnum = any (k.conkey)) || ')'
  from pg_constraint k join relation c on c.oid = k.conrelid where k.contype = 'f' and not exists (
    select from pg_index i join pg_class x on x.oid = i.indexrelid join pg_am m on m.oid = x.relam
    where i.indrelid = k.conrelid and m.amname = 'btree' and i.indpred is null
      and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)
union all
select 'invalid-index', indexrelid::regclass::text, indexrelid::regclass || ' is not valid' from pg_index where not indisvalid
