-- How a question is stored, in one call whose plans a session keeps: as five statements, planned for each question, it took
-- twice as long. Its caller's rights and policies hold, as before.
create function private.store_question(
  answer_id uuid,
  conversation uuid,
  named boolean,
  asker uuid,
  words text,
  first_words text,
  answering text,
  embedding text,
  kept uuid[],
  replaced uuid,
  dead_seconds double precision,
  history_turns integer,
  history_length integer
) returns table (
    is_new boolean, id uuid, conversation_id uuid, question text, answer text, status text, error text, sources jsonb,
    model text, prompt_tokens integer, completion_tokens integer, cached_tokens integer,
    updated_age_seconds double precision, questions text[], answers text[])
  language plpgsql volatile security invoker
  set search_path = pg_catalog, pg_temp
  set plan_cache_mode = 'force_generic_plan'
as $$
#variable_conflict use_column
declare
  known constant boolean := exists (select from public.chat_logs l where l.id = answer_id);
  stored public.chat_logs;
begin
  -- Not when the id is known: a repeated request without a conversation must not leave an empty one, nor delete what it
  -- asked for before.
  if not known then
    insert into public.conversations (id, user_id, title) values (conversation, asker, first_words) on conflict (id) do nothing;
    if replaced is not null then
      delete from public.chat_logs l where l.conversation_id = conversation and l.user_id = asker
        and (l.created_at, l.id) >= (
          select r.created_at, r.id from public.chat_logs r where r.id = replaced and r.conversation_id = conversation);
    elsif kept is not null then
      delete from public.chat_logs l where l.conversation_id = conversation and l.user_id = asker
        and l.created_at > coalesce((
          select max(k.created_at) from public.chat_logs k
          where k.id = any (kept) and k.conversation_id = conversation), '-infinity');
    end if;
  end if;
  insert into public.chat_logs (id, conversation_id, user_id, question, model, embedding_model)
  values (answer_id, conversation, asker, words, answering, embedding) on conflict (id) do nothing;
  is_new := found;
  if is_new then
    update public.conversations c set title = c.title where c.id = conversation;  -- it was used now
  else  -- one of which there is not a word is asked anew, unless it was stopped
    update public.chat_logs l set status = 'streaming', error = null, sources = '[]', model = answering, embedding_model = embedding
    where l.id = answer_id and l.question = words and l.answer = '' and (not named or l.conversation_id = conversation)
      and (l.status = 'failed' or l.status = 'cancelled' and l.error is distinct from 'stopped'
        or l.updated_at < now() - make_interval(secs => dead_seconds) and l.status = 'streaming');
    is_new := found;
  end if;
  select * into stored from public.chat_logs l where l.id = answer_id;
  select array_agg(h.question order by h.created_at), array_agg(h.answer order by h.created_at) into questions, answers
  from (
    select left(l.question, history_length) as question, left(l.answer, history_length) as answer, l.created_at
    from public.chat_logs l
    where is_new and l.conversation_id = stored.conversation_id and l.user_id = asker and l.id <> answer_id and l.answer <> ''
    order by l.created_at desc limit history_turns) as h;
  return query select is_new, stored.id, stored.conversation_id, stored.question, stored.answer, stored.status, stored.error,
    stored.sources, stored.model, stored.prompt_tokens, stored.completion_tokens, stored.cached_tokens,
    extract(epoch from now() - stored.updated_at)::pg_catalog.float8, questions, answers;
end $$;
comment on function private.store_question(
    uuid, uuid, boolean, uuid, text, text, text, text, uuid[], uuid, double precision, integer, integer) is
  'Stores a question, and its conversation when that is new; returns its row, whether it is new, and what was said before.';
revoke all on function private.store_question(
  uuid, uuid, boolean, uuid, text, text, text, text, uuid[], uuid, double precision, integer, integer) from public;
grant execute on function private.store_question(
  uuid, uuid, boolean, uuid, text, text, text, text, uuid[], uuid, double precision, integer, integer) to cimt_api;
