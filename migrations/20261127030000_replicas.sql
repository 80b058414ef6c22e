-- What the replicas of the API know of each other: how often a user has asked, whose answers are being written, and who
-- of them is alive. Unlogged: what a crash of the server forgets, it forgives.

create unlogged table private.replicas (
  id uuid primary key,
  alive_until timestamptz not null,
  alone uuid[] not null default '{}',
  save_queue bigint not null default 0
);
comment on table private.replicas is 'Processes of the API. One that is not alive any more holds no places.';
comment on column private.replicas.id is 'Made by the process when it starts.';
comment on column private.replicas.alive_until is 'Moved on by the process every few seconds.';
comment on column private.replicas.alone is 'Reservations of its answers that nobody listens to.';
comment on column private.replicas.save_queue is 'Its answers with text that is not stored.';

create unlogged table private.asked (
  user_id uuid primary key references auth.users (id) on delete cascade,
  second bigint not null,
  counts integer[] not null
) with (fillfactor = 50);
comment on table private.asked is 'How many questions each user has asked in the last minute.';
comment on column private.asked.user_id is 'Who asks.';
comment on column private.asked.second is 'That of the first count, since 1970.';
comment on column private.asked.counts is 'Of this second and of the sixty before it, the newest first.';

create unlogged table private.counters (
  counter text primary key,
  value bigint not null
);
comment on table private.counters is 'What all processes of the API have counted together.';
comment on column private.counters.counter is 'What is counted.';
comment on column private.counters.value is 'How many there were.';

-- For the functions below alone.
alter table private.replicas enable row level security;
alter table private.asked enable row level security;
alter table private.counters enable row level security;
revoke all on private.replicas, private.asked, private.counters from public, anon, authenticated, cimt_api, service_role;
grant select, insert, update, delete on private.replicas to cimt_definer;
grant select, insert, update on private.asked, private.counters to cimt_definer;

-- A reservation is also the place of its answer, from its question to its end.
alter table private.reservations
  add column replica uuid,
  add column answer uuid,
  add column let_go text check (let_go in ('stopped', 'abandoned'));
comment on column private.reservations.replica is 'Who writes the answer; null: a release that counts its places itself.';
comment on column private.reservations.answer is 'The answer, by which its user stops it.';
comment on column private.reservations.let_go is 'Why its writer is to end it: it holds its money until then, and no place.';
grant update on private.reservations to cimt_definer;

create function private.count_question(most integer, add boolean) returns table (fits boolean, remaining integer, seconds integer)
  language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  account constant pg_catalog.uuid :=
    (nullif(current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb ->> 'sub')::pg_catalog.uuid;
  moment constant pg_catalog.float8 := extract(epoch from clock_timestamp())::pg_catalog.float8;
  this constant pg_catalog.int8 := floor(moment)::pg_catalog.int8;
  mine record;
  total pg_catalog.int8;
  oldest pg_catalog.int8;
  may boolean;
begin
  -- Locks the user's row to the end of the transaction: of one user's questions one is looked at after the other.
  insert into private.asked as a (user_id, second, counts) values (account, this, array_fill(0, array[61]))
  on conflict (user_id) do update set
    second = greatest(a.second, excluded.second),
    counts = case
      when a.second >= this then a.counts
      when a.second <= this - 61 then excluded.counts
      else array_fill(0, array[(this - a.second)::pg_catalog.int4]) || a.counts[1:61 - (this - a.second)::pg_catalog.int4] end
  returning a.second, a.counts into mine;
  select sum(c.asked), max(c.ago) filter (where c.asked > 0) into total, oldest
  from unnest(mine.counts) with ordinality as c (asked, ago);
  may := total < most;
  if may and add then
    update private.asked a set counts[1] = a.counts[1] + 1 where a.user_id = account;
    total := total + 1;
  end if;
  return query select may, greatest(most - total, 0)::pg_catalog.int4,
    ceil(mine.second + 62 - coalesce(oldest, 1) - moment)::pg_catalog.int4;
end $$;
comment on function private.count_question(integer, boolean) is
  'Counts a question where the user has asked fewer in the last minute; says how many are left, and seconds until there is more.';

create function private.begin_answer(
  reservation uuid, answer uuid, replica uuid, replica_seconds integer, most_asked integer, most_written integer, ended uuid[],
  alone uuid[], asked_model text, amount bigint, seconds integer, day_cap bigint, month_cap bigint
) returns table (
  verdict text, room uuid, remaining integer, again integer,
  month_spent bigint, month_held bigint, day_spent bigint, day_held bigint, at timestamptz
)
  language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  account constant pg_catalog.uuid :=
    (nullif(current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb ->> 'sub')::pg_catalog.uuid;
  writer constant pg_catalog.uuid := begin_answer.replica;
  subject constant pg_catalog.uuid := begin_answer.answer;
  left_alone constant pg_catalog.uuid[] := begin_answer.alone;
  counted record;
  places pg_catalog.uuid[];
  gives_way pg_catalog.uuid;
  held record;
begin
  if account is null or most_asked is null or most_written is null or writer is null then
    raise exception 'who asks, who writes, and how much may be asked and written have to be said';
  end if;
  insert into private.replicas (id, alive_until) values (writer, clock_timestamp() + make_interval(secs => replica_seconds))
  on conflict (id) do nothing;
  select * into counted from private.count_question(most_asked, false);
  select coalesce(array_agg(r.id), '{}') into places
  from private.reservations r join private.replicas p on p.id = r.replica
  where r.user_id = account and r.let_go is null and r.id <> all (ended) and p.alive_until > clock_timestamp();
  if cardinality(places) >= most_written then
    -- The oldest that nobody listens to gives way.
    select r.id into gives_way from private.reservations r join private.replicas p on p.id = r.replica
    where r.id = any (places) and r.id = any (case when p.id = writer then left_alone else p.alone end)
    order by r.expires_at limit 1;
    if gives_way is null then
      return query select 'streams', null::pg_catalog.uuid, counted.remaining, counted.seconds,
        null::pg_catalog.int8, null::pg_catalog.int8, null::pg_catalog.int8, null::pg_catalog.int8, clock_timestamp();
      return;
    end if;
  end if;
  if not counted.fits then
    return query select 'rate', null::pg_catalog.uuid, 0, counted.seconds,
      null::pg_catalog.int8, null::pg_catalog.int8, null::pg_catalog.int8, null::pg_catalog.int8, clock_timestamp();
    return;
  end if;
  update private.asked a set counts[1] = a.counts[1] + 1 where a.user_id = account;
  select * into held from private.reserve_money(reservation, asked_model, amount, seconds, day_cap, month_cap);
  if held.granted then
    update private.reservations r set replica = writer, answer = subject where r.id = reservation;
    update private.reservations r set let_go = 'abandoned' where r.id = gives_way;
  end if;
  return query select case when held.granted then 'granted' else 'money' end,
    case when held.granted then gives_way end, counted.remaining - 1, counted.seconds,
    held.month_spent, held.month_held, held.day_spent, held.day_held, held.at;
end $$;
comment on function private.begin_answer(
  uuid, uuid, uuid, integer, integer, integer, uuid[], uuid[], text, bigint, integer, bigint, bigint) is
  'Counts a question, takes a place for its answer and holds its money, or says which of the three refuses.';

create function private.let_go(stopped uuid) returns void
  language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  update private.reservations r set let_go = 'stopped'
  where r.answer = stopped and r.let_go is null and r.user_id =
    (nullif(current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb ->> 'sub')::pg_catalog.uuid
$$;
comment on function private.let_go(uuid) is 'Frees the place of an answer of the user of the request; who writes it ends it.';

create function private.renew_replica(
  replica uuid, replica_seconds integer, known uuid[], nobody_listens uuid[], lost_seconds integer, queue bigint, grown jsonb
) returns table (alive integer, queued bigint, counted jsonb, stopped uuid[], abandoned uuid[])
  language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  moment constant pg_catalog.timestamptz := clock_timestamp();
  itself constant pg_catalog.uuid := renew_replica.replica;
begin
  insert into private.replicas as p (id, alive_until, alone, save_queue)
  values (itself, moment + make_interval(secs => replica_seconds), nobody_listens, queue)
  on conflict (id) do update set
    alive_until = excluded.alive_until, alone = excluded.alone, save_queue = excluded.save_queue;
  delete from private.replicas p where p.alive_until < moment - interval '1 day';
  insert into private.counters as c (counter, value)
  select g.key, g.value::pg_catalog.int8 from jsonb_each_text(grown) g order by g.key
  on conflict (counter) do update set value = c.value + excluded.value;
  -- Made for a request of which this process heard nothing any more.
  update private.reservations r set let_go = 'abandoned'
  where r.replica = itself and r.let_go is null and r.id <> all (known)
    and r.expires_at < moment + make_interval(secs => lost_seconds);
  return query select others.alive, others.queued,
    (select coalesce(jsonb_object_agg(c.counter, c.value), '{}') from private.counters c), ending.stopped, ending.abandoned
  from (
    select count(*)::pg_catalog.int4 as alive,
      coalesce(sum(p.save_queue) filter (where p.id <> itself), 0)::pg_catalog.int8 as queued
    from private.replicas p where p.alive_until > moment
  ) as others, (
    select coalesce(array_agg(r.id) filter (where r.let_go = 'stopped'), '{}') as stopped,
      coalesce(array_agg(r.id) filter (where r.let_go = 'abandoned'), '{}') as abandoned
    from private.reservations r where r.replica = itself and r.let_go is not null and r.expires_at > moment
  ) as ending;
end $$;
comment on function private.renew_replica(uuid, integer, uuid[], uuid[], integer, bigint, jsonb) is
  'Keeps a process alive for the others and adds what it counted; returns what all have, and which of its answers are to end.';

revoke all on function private.count_question(integer, boolean), private.begin_answer(
    uuid, uuid, uuid, integer, integer, integer, uuid[], uuid[], text, bigint, integer, bigint, bigint),
  private.let_go(uuid), private.renew_replica(uuid, integer, uuid[], uuid[], integer, bigint, jsonb) from public;
grant execute on function private.begin_answer(
    uuid, uuid, uuid, integer, integer, integer, uuid[], uuid[], text, bigint, integer, bigint, bigint),
  private.let_go(uuid), private.renew_replica(uuid, integer, uuid[], uuid[], integer, bigint, jsonb), private.count_question(integer, boolean)
  to cimt_api;
grant create on schema private to cimt_definer;
alter function private.count_question(integer, boolean) owner to cimt_definer;
alter function private.begin_answer(
  uuid, uuid, uuid, integer, integer, integer, uuid[], uuid[], text, bigint, integer, bigint, bigint) owner to cimt_definer;
alter function private.let_go(uuid) owner to cimt_definer;
alter function private.renew_replica(uuid, integer, uuid[], uuid[], integer, bigint, jsonb) owner to cimt_definer;
revoke create on schema private from cimt_definer;
