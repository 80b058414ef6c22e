-- Money is held before the model is asked and spent after it, here, so that all processes of the API share one budget.
-- Sums are whole millionths of a US dollar; days and months are those of UTC.

create table private.reservations (
  id uuid primary key,
  user_id uuid references auth.users (id) on delete set null,
  day date not null,
  model text not null,
  held bigint not null check (held >= 0),
  expires_at timestamptz not null
);
comment on table private.reservations is 'What answers that are being written may cost, until they have ended.';
comment on column private.reservations.id is 'Of the attempt to write an answer, made by the API.';
comment on column private.reservations.user_id is 'Who asked; null: the account is gone.';
comment on column private.reservations.day is 'When it was asked (UTC): the day and month that pay.';
comment on column private.reservations.model is 'The model that is asked.';
comment on column private.reservations.held is 'The most that it may cost, in millionths of a US dollar.';
comment on column private.reservations.expires_at is 'From then on it holds nothing: its process has died.';
create index reservations_user_id on private.reservations (user_id);
create index reservations_expires_at on private.reservations (expires_at);

create table private.spending (
  id bigint generated always as identity primary key,
  user_id uuid references auth.users (id) on delete set null,
  day date not null,
  model text not null,
  answers bigint not null,
  estimated bigint not null check (estimated <= answers),
  prompt_tokens bigint not null,
  cached_tokens bigint not null,
  completion_tokens bigint not null,
  embedding_tokens bigint not null,
  cost bigint not null check (cost >= 0),
  unique (day, user_id, model)
);
comment on table private.spending is 'What was spent, by day, user and model; it stays when answers are deleted.';
comment on column private.spending.id is 'A number without a meaning.';
comment on column private.spending.user_id is 'Who asked; null: an account that is gone, of which the sum stays.';
comment on column private.spending.day is 'When it was asked (UTC).';
comment on column private.spending.model is 'The model that answered.';
comment on column private.spending.answers is 'Answers that cost something, also those that were cut short or failed.';
comment on column private.spending.estimated is 'Of these, those whose tokens the model''s service did not say: we counted them.';
comment on column private.spending.prompt_tokens is 'Tokens of the prompts.';
comment on column private.spending.cached_tokens is 'Of these, those that the model''s service had in its cache.';
comment on column private.spending.completion_tokens is 'Tokens of the answers.';
comment on column private.spending.embedding_tokens is 'Tokens of the questions that were embedded, as we count them.';
comment on column private.spending.cost is 'What all of it cost, in millionths of a US dollar.';
create index spending_user_id on private.spending (user_id);

-- For the functions below alone.
alter table private.reservations enable row level security;
alter table private.spending enable row level security;
revoke all on private.reservations, private.spending from public, anon, authenticated, cimt_api, service_role;
grant select, insert, delete on private.reservations to cimt_definer;
grant select, insert, update on private.spending to cimt_definer;

create function private.reserve_money(
  reservation uuid, asked_model text, amount bigint, seconds integer, day_cap bigint, month_cap bigint
) returns table (granted boolean, month_spent bigint, month_held bigint, day_spent bigint, day_held bigint, at timestamptz)
  language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  account constant pg_catalog.uuid :=
    (nullif(current_setting('request.jwt.claims', true), '')::pg_catalog.jsonb ->> 'sub')::pg_catalog.uuid;
  moment pg_catalog.timestamptz;
  today pg_catalog.date;
  month_begin pg_catalog.date;
  sums record;
  fits boolean;
begin
  if account is null or amount is null or seconds is null or day_cap is null or month_cap is null then
    raise exception 'who asks, how much, for how long, and both caps have to be said';
  end if;
  -- One at a time, to the end of the transaction: who comes next sees what this one took.
  perform pg_advisory_xact_lock(1667853685);
  moment := clock_timestamp();
  today := (moment at time zone 'utc')::pg_catalog.date;
  month_begin := date_trunc('month', today)::pg_catalog.date;
  -- An answer may still be paid long after its time: only a row that has been dead for a day goes.
  delete from private.reservations r where r.expires_at < moment - interval '1 day';
  -- In one statement: an answer that ends at this moment is seen either as held or as spent.
  select * into sums from (
    select coalesce(sum(s.cost), 0)::pg_catalog.int8 as month_spent,
      coalesce(sum(s.cost) filter (where s.day = today and s.user_id = account), 0)::pg_catalog.int8 as day_spent
    from private.spending s where s.day >= month_begin
  ) as spent, (
    select coalesce(sum(r.held), 0)::pg_catalog.int8 as month_held,
      coalesce(sum(r.held) filter (where r.day = today and r.user_id = account), 0)::pg_catalog.int8 as day_held
    from private.reservations r where r.expires_at > moment and r.day >= month_begin
  ) as held;
  fits := sums.month_spent + sums.month_held + amount <= month_cap and sums.day_spent + sums.day_held + amount <= day_cap;
  if fits then
    insert into private.reservations (id, user_id, day, model, held, expires_at)
    values (reservation, account, today, asked_model, amount, moment + make_interval(secs => seconds));
  end if;
  return query select fits, sums.month_spent, sums.month_held, sums.day_spent, sums.day_held, moment;
end $$;
comment on function private.reserve_money(uuid, text, bigint, integer, bigint, bigint) is
  'Holds an amount for an answer to the user of the request, unless it would go over a cap; says what is spent and held.';

create function private.settle_money(
  reservation uuid, price bigint, prompt bigint, cached bigint, completion bigint, embedding bigint, guessed boolean
) returns void
  language sql volatile security definer set search_path = pg_catalog, pg_temp as $$
  with ended as (
    delete from private.reservations r where r.id = reservation returning r.user_id, r.day, r.model
  )
  insert into private.spending as s (
    user_id, day, model, answers, estimated, prompt_tokens, cached_tokens, completion_tokens, embedding_tokens, cost)
  select e.user_id, e.day, e.model, 1, case when guessed then 1 else 0 end, prompt, cached, completion, embedding, price
  from ended e where price > 0
  on conflict (day, user_id, model) do update set
    answers = s.answers + 1,
    estimated = s.estimated + excluded.estimated,
    prompt_tokens = s.prompt_tokens + excluded.prompt_tokens,
    cached_tokens = s.cached_tokens + excluded.cached_tokens,
    completion_tokens = s.completion_tokens + excluded.completion_tokens,
    embedding_tokens = s.embedding_tokens + excluded.embedding_tokens,
    cost = s.cost + excluded.cost
$$;
comment on function private.settle_money(uuid, bigint, bigint, bigint, bigint, bigint, boolean) is
  'Ends a reservation and counts what was spent instead; a second time it does nothing.';

create function private.month_spent() returns bigint
  language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select coalesce(sum(s.cost), 0)::pg_catalog.int8 from private.spending s
  where s.day >= date_trunc('month', now() at time zone 'utc')::pg_catalog.date
$$;
comment on function private.month_spent() is 'What was spent this month (UTC), in millionths of a US dollar.';

revoke all on function private.reserve_money(uuid, text, bigint, integer, bigint, bigint),
  private.settle_money(uuid, bigint, bigint, bigint, bigint, bigint, boolean), private.month_spent() from public;
grant execute on function private.reserve_money(uuid, text, bigint, integer, bigint, bigint),
  private.settle_money(uuid, bigint, bigint, bigint, bigint, bigint, boolean), private.month_spent() to cimt_api;
grant create on schema private to cimt_definer;
alter function private.reserve_money(uuid, text, bigint, integer, bigint, bigint) owner to cimt_definer;
alter function private.settle_money(uuid, bigint, bigint, bigint, bigint, bigint, boolean) owner to cimt_definer;
alter function private.month_spent() owner to cimt_definer;
revoke create on schema private from cimt_definer;

alter table public.chat_logs
  add column embedding_tokens integer check (embedding_tokens >= 0),
  add column cost_micro_usd bigint check (cost_micro_usd >= 0);
comment on column public.chat_logs.embedding_tokens is 'Tokens of the question that was embedded, as we count them.';
comment on column public.chat_logs.cost_micro_usd is
  'What it cost, in millionths of a US dollar; where prompt_tokens is null the service did not say, and we counted.';

-- allow: definer-replaced: what a person has spent is kept of them too
create or replace function private.export_user(account uuid) returns jsonb
  language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select jsonb_build_object(
    'exported_at', now(),
    'account', (select jsonb_object_agg(e.key, e.value) from auth.users a, jsonb_each(to_jsonb(a)) e
      where a.id = account and e.key !~ 'password|token'),
    'profile', (select to_jsonb(u) from public.users u where u.id = account),
    'conversations', coalesce((select jsonb_agg(to_jsonb(c) order by c.created_at)
      from public.conversations c where c.user_id = account), '[]'),
    'chat_logs', coalesce((select jsonb_agg(to_jsonb(l) order by l.created_at)
      from public.chat_logs l where l.user_id = account), '[]'),
    'api_keys', coalesce((select jsonb_agg(to_jsonb(k) - 'hash' order by k.created_at)
      from public.api_keys k where k.user_id = account), '[]'),
    'spending', coalesce((select jsonb_agg(to_jsonb(s) - 'id' order by s.day, s.model)
      from private.spending s where s.user_id = account), '[]'),
    'documents', coalesce((select jsonb_agg(to_jsonb(v) - 'embedding' - 'search' order by v.source, v.chunk)
      from public.vectors v where v.owner_id = account), '[]'))
$$;
