-- Read with an empty search_path, so that every name is whole. Not compared: the right to make temporary things, which
-- no code of ours does (tests/database/test_isolation.py), and what an extension brought.
with space as (
  select oid, nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'),
role as (select oid, rolname from pg_roles where rolname !~ '^pg_' and not rolsuper),
relation as (
  select c.*, n.nspname || '.' || c.relname as name from pg_class c join space n on n.oid = c.relnamespace
  where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and not exists (
    select from pg_depend where classid = 'pg_class'::regclass and objid = c.oid and deptype = 'e')),
field as (
  select a.*, c.name, c.relkind from pg_attribute a join relation c on c.oid = a.attrelid
  where a.attnum > 0 and not a.attisdropped and c.relkind <> 'S'),
routine as (
  select p.*, n.nspname || '.' || p.proname || '(' || array_to_string(p.proargtypes::regtype[], ', ') || ')' as name,
    n.nspname || '.' || p.proname as called, l.lanname
  from pg_proc p join space n on n.oid = p.pronamespace join pg_language l on l.oid = p.prolang
  where not exists (
    select from pg_depend where classid = 'pg_proc'::regclass and objid = p.oid and deptype = 'e')),
kind as (
  select t.*, n.nspname || '.' || t.typname as name from pg_type t join space n on n.oid = t.typnamespace
  where (t.typtype in ('e', 'd', 'r') or t.typtype = 'c' and exists (
      select from pg_class where oid = t.typrelid and relkind = 'c'))
    and not exists (select from pg_depend where classid = 'pg_type'::regclass and objid = t.oid and deptype = 'e'))
select array['schema', nspname]::text[], 'null'::jsonb from space
union all
select array['relation', name]::text[], jsonb_build_object('kind', relkind, 'kept', relpersistence, 'secured', relrowsecurity,
  'forced', relforcerowsecurity, 'invoker', coalesce(reloptions::text ~* 'security_invoker=(true|on|1|yes)', false),
  'definition', case when relkind in ('v', 'm') then pg_get_viewdef(oid) end,
  'sequence', (select to_jsonb(s) - 'seqrelid' from pg_sequence s where s.seqrelid = oid),
  'last', case relkind when 'S' then pg_sequence_last_value(oid) end,
  'parents', (select array_agg(inhparent::regclass::text order by 1) from pg_inherits where inhrelid = oid))
from relation
union all
select array['column', name, attname]::text[], jsonb_build_object('type', format_type(atttypid, atttypmod),
  'full', attnotnull, 'default', (select pg_get_expr(adbin, adrelid) from pg_attrdef
    where adrelid = attrelid and adnum = attnum), 'made', attidentity::text || attgenerated::text, 'collation', attcollation::int)
from field
union all
select array['constraint', coalesce(c.name, t.name), k.conname]::text[], jsonb_build_object('type', k.contype,
  'definition', pg_get_constraintdef(k.oid), 'columns', (select array_agg(attname) from pg_attribute
    where attrelid = k.conrelid and attnum = any (k.conkey)))
from pg_constraint k left join relation c on c.oid = k.conrelid left join kind t on t.oid = k.contypid
where k.contype in ('c', 'f', 'u', 'p', 'x') and coalesce(c.name, t.name) is not null
union all
select array['index', c.name, i.indexrelid::regclass::text]::text[], jsonb_build_object('unique', i.indisunique,
  'valid', i.indisvalid, 'method', m.amname, 'owned', exists (select from pg_constraint where conindid = i.indexrelid),
  'where', pg_get_expr(i.indpred, i.indrelid), 'columns', (select array_agg(pg_get_indexdef(i.indexrelid, at, true)
    || case when m.amname = 'btree' then '' else ' ' || i.indclass[at - 1] end order by at)
    from generate_series(1, i.indnkeyatts) at))
from pg_index i join relation c on c.oid = i.indrelid join pg_class x on x.oid = i.indexrelid
  join pg_am m on m.oid = x.relam
union all
select array['type', name]::text[], jsonb_build_object('type', typtype, 'base', typbasetype::regtype, 'full', typnotnull,
  'parts', case typtype
    when 'e' then (select jsonb_object_agg(enumlabel, 0) from pg_enum where enumtypid = oid)
    when 'c' then (select jsonb_object_agg(attname, format_type(atttypid, atttypmod)) from pg_attribute
      where attrelid = typrelid and attnum > 0 and not attisdropped) end)
from kind
union all
select array['function', name]::text[], jsonb_build_object('called', called, 'result', pg_get_function_result(oid),
  'names', proargnames, 'least', pronargs - pronargdefaults, 'most', pronargs, 'kind', prokind, 'strict', proisstrict,
  'volatile', provolatile, 'definer', prosecdef, 'language', lanname, 'settings', proconfig,
  'source', coalesce(pg_get_function_sqlbody(oid), prosrc))
from routine
union all
select array['trigger', c.name, t.tgname]::text[], jsonb_build_object('definition', pg_get_triggerdef(t.oid),
  'on', t.tgenabled, 'before', t.tgtype & 2 = 2, 'source', p.prosrc)
from pg_trigger t join relation c on c.oid = t.tgrelid join pg_proc p on p.oid = t.tgfoid where not t.tgisinternal
union all
select array['policy', c.name, p.polname]::text[], jsonb_build_object('permissive', p.polpermissive, 'for', p.polcmd,
  'roles', array(select case when r = 0 then 'public' else r::regrole::text end from unnest(p.polroles) r),
  'qual', pg_get_expr(p.polqual, p.polrelid), 'check', pg_get_expr(p.polwithcheck, p.polrelid))
from pg_policy p join relation c on c.oid = p.polrelid
union all
select array['rule', c.name, r.rulename]::text[], to_jsonb(pg_get_ruledef(r.oid))
from pg_rewrite r join relation c on c.oid = r.ev_class where r.rulename <> '_RETURN'
union all
select array['event trigger', evtname]::text[], jsonb_build_object('on', evtenabled) from pg_event_trigger
union all
select array['extension', extname]::text[], 'null' from pg_extension
union all
select array['publication', p.pubname, c.name]::text[], 'null'
from pg_publication_rel r join pg_publication p on p.oid = r.prpubid join relation c on c.oid = r.prrelid
union all
select array['object', i.type, i.identity]::text[], 'null'
from (select 'pg_operator'::regclass as class, oid from pg_operator union all select 'pg_opclass'::regclass, oid from pg_opclass
    union all select 'pg_collation'::regclass, oid from pg_collation union all select 'pg_cast'::regclass, oid from pg_cast
    union all select 'pg_ts_dict'::regclass, oid from pg_ts_dict
    union all select 'pg_foreign_server'::regclass, oid from pg_foreign_server) o,
  pg_identify_object(o.class, o.oid, 0) i
where o.oid >= 16384 and not exists (
  select from pg_depend d where d.classid = o.class and d.objid = o.oid and d.deptype = 'e')
union all
select array['text search', n.nspname || '.' || c.cfgname]::text[], (select jsonb_agg(array[m.maptokentype::text,
  m.mapseqno::text, m.mapdict::regdictionary::text] order by 1) from pg_ts_config_map m where m.mapcfg = c.oid)
from pg_ts_config c join space n on n.oid = c.cfgnamespace
union all
select array['role', r.rolname]::text[], jsonb_build_object('may', jsonb_build_object('super', r.rolsuper,
  'inherit', r.rolinherit, 'createrole', r.rolcreaterole, 'createdb', r.rolcreatedb, 'login', r.rolcanlogin,
  'replication', r.rolreplication, 'bypassrls', r.rolbypassrls),
  'limit', nullif(r.rolconnlimit, -1), 'until', r.rolvaliduntil, 'password', md5(a.rolpassword))
from pg_roles r join pg_authid a on a.oid = r.oid where r.rolname !~ '^pg_'
union all
select array['member', m.member::regrole::text, m.roleid::regrole::text]::text[], 'null' from pg_auth_members m
union all
select array['setting', case when setrole = 0 then 'everybody' else setrole::regrole::text end,
  split_part(s, '=', 1)]::text[], to_jsonb(s)
from pg_db_role_setting, unnest(setconfig) s
where setdatabase in (0, (select oid from pg_database where datname = current_database()))
union all
select array['default', d.defaclrole::regrole::text, coalesce(d.defaclnamespace::regnamespace::text, ''),
  d.defaclobjtype::text, case when a.grantee = 0 then 'public' else a.grantee::regrole::text end, a.privilege_type]::text[], 'null'
from pg_default_acl d, aclexplode(d.defaclacl) a
union all
select array['right', r.rolname, c.name, p]::text[], 'null' from role r, relation c,
  unnest(case when c.relkind = 'S' then array['usage', 'select', 'update']
    else array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger'] end) p
where case when c.relkind = 'S' then has_sequence_privilege(r.oid, c.oid, p) else has_table_privilege(r.oid, c.oid, p) end
union all
select array['right', r.rolname, f.name, p, f.attname]::text[], 'null'
from role r, field f, unnest(array['select', 'insert', 'update']) p
where has_column_privilege(r.oid, f.attrelid, f.attnum, p)
union all
select array['right', r.rolname, p.name, 'execute']::text[], 'null'
from role r, routine p where has_function_privilege(r.oid, p.oid, 'execute')
union all
select array['right', r.rolname, n.nspname, p]::text[], 'null'
from role r, space n, unnest(array['usage', 'create']) p where has_schema_privilege(r.oid, n.oid, p)
union all
select array['right', r.rolname, t.name, 'usage']::text[], 'null'
from role r, kind t where has_type_privilege(r.oid, t.oid, 'usage')
union all
select array['right', r.rolname, 'the database', p]::text[], 'null'
from role r, unnest(array['connect', 'create']) p where has_database_privilege(r.oid, current_database(), p)
