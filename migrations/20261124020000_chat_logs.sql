-- What was asked and answered: one row of chat_logs is one question with its answer, grouped in conversations.

create table public.conversations (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  title text check (char_length(title) <= 200),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (id, user_id)
);
comment on table public.conversations is 'A thread of questions and answers of one user.';
comment on column public.conversations.id is 'Chosen by the client or made here.';
comment on column public.conversations.user_id is 'Whose it is.';
comment on column public.conversations.title is 'First words of the first question.';
comment on column public.conversations.created_at is 'When it began.';
comment on column public.conversations.updated_at is 'When something was asked in it last.';
create index conversations_user_id_updated_at on public.conversations (user_id, updated_at desc);

create table public.chat_logs (
  id uuid primary key default gen_random_uuid(),
  conversation_id uuid not null,
  user_id uuid not null references auth.users (id) on delete cascade,
  question text not null check (char_length(question) <= 32000),
  answer text not null default '',
  status text not null default 'streaming'
    check (status in ('streaming', 'complete', 'cancelled', 'failed')),
  error text check (char_length(error) <= 200),
  sources jsonb not null default '[]' check (jsonb_typeof(sources) = 'array'),
  model text not null,
  embedding_model text,
  prompt_tokens integer check (prompt_tokens >= 0),
  completion_tokens integer check (completion_tokens >= 0),
  first_token_ms integer check (first_token_ms >= 0),
  duration_ms integer check (duration_ms >= 0),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  -- Both columns: nobody can hang a row on another user's conversation.
  foreign key (conversation_id, user_id)
    references public.conversations (id, user_id) on delete cascade
);
comment on table public.chat_logs is 'One question and its answer, also when it was cut short or failed.';
comment on column public.chat_logs.id is 'Chosen by the client, so that a repeated request is recognised, or made here.';
comment on column public.chat_logs.conversation_id is 'The conversation it belongs to.';
comment on column public.chat_logs.user_id is 'Who asked.';
comment on column public.chat_logs.question is 'What the user wrote.';
comment on column public.chat_logs.answer is 'The answer, or as much of it as has come; it only ever grows.';
comment on column public.chat_logs.status is 'streaming, complete, cancelled (nobody was listening any more) or failed.';
comment on column public.chat_logs.error is 'Why it failed: a kind, never a message of the model''s service.';
comment on column public.chat_logs.sources is 'The passages given to the model: [{"id", "source", "chunk", "score"}].';
comment on column public.chat_logs.model is 'The model that answered.';
comment on column public.chat_logs.embedding_model is 'The model that embedded the question; null without retrieval.';
comment on column public.chat_logs.prompt_tokens is 'Tokens of the prompt, as billed.';
comment on column public.chat_logs.completion_tokens is 'Tokens of the answer, as billed.';
comment on column public.chat_logs.first_token_ms is 'From the request to the first token, in milliseconds.';
comment on column public.chat_logs.duration_ms is 'From the request to the last token, in milliseconds.';
comment on column public.chat_logs.created_at is 'When it was asked.';
comment on column public.chat_logs.updated_at is 'When the answer grew last; an old one that still streams has lost its process.';
create index chat_logs_conversation_id_created_at on public.chat_logs (conversation_id, user_id, created_at);
create index chat_logs_user_id on public.chat_logs (user_id);
create index chat_logs_created_at on public.chat_logs (created_at);

create trigger touch before update on public.conversations
  for each row execute function private.touch();
create trigger touch before update on public.chat_logs
  for each row execute function private.touch();

alter table public.conversations enable row level security;
alter table public.chat_logs enable row level security;
revoke all on public.conversations, public.chat_logs from anon, authenticated;
grant select, delete on public.conversations, public.chat_logs to authenticated;
grant select, insert, update, delete on public.conversations, public.chat_logs to cimt_api, service_role;

create policy conversations_own on public.conversations to authenticated, cimt_api
  using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));
create policy chat_logs_own on public.chat_logs to authenticated, cimt_api
  using (user_id = (select auth.uid())) with check (user_id = (select auth.uid()));

create function private.delete_expired_chats(keep_days integer) returns bigint
  language plpgsql security definer set search_path = '' as $$
declare
  deleted bigint;
begin
  if keep_days is null or keep_days < 1 then
    raise exception 'keep_days is %, not a whole number from 1', coalesce(keep_days::text, 'null');
  end if;
  delete from public.chat_logs where created_at < now() - make_interval(days => keep_days);
  get diagnostics deleted = row_count;
  delete from public.conversations c
  where c.updated_at < now() - make_interval(days => keep_days)
    and not exists (select from public.chat_logs l where l.conversation_id = c.id);
  return deleted;
end $$;
comment on function private.delete_expired_chats(integer) is
  'Retention: deletes what was asked more than keep_days days ago, and conversations left empty; returns how many answers.';
revoke all on function private.delete_expired_chats(integer) from public;
grant usage on schema private to cimt_api, service_role;
grant execute on function private.delete_expired_chats(integer) to cimt_api, service_role;
