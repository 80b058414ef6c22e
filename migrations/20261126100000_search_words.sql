-- The words of the passages, by which search finds them in Portuguese and English alike: without accents, and stemmed by
-- both languages, so that nobody has to guess which one a text or a question is in. Beside the passages and not in them:
-- a new column would write the table anew, with its vector index, and nobody could search until that was done.

create extension if not exists unaccent with schema extensions;
create extension if not exists pg_trgm with schema extensions;
create extension if not exists fuzzystrmatch with schema extensions;

-- What both languages leave out, before accents go: the list says `não`, not `nao`.
create text search dictionary private.portuguese_stop
  (template = pg_catalog.simple, stopwords = portuguese, accept = false);
create text search dictionary private.english_stop
  (template = pg_catalog.simple, stopwords = english, accept = false);

create text search configuration private.portuguese (copy = pg_catalog.portuguese);
alter text search configuration private.portuguese
  alter mapping for asciiword, word, hword, hword_part, asciihword, hword_asciipart
  with private.portuguese_stop, private.english_stop, extensions.unaccent, pg_catalog.portuguese_stem;
create text search configuration private.english (copy = pg_catalog.english);
alter text search configuration private.english
  alter mapping for asciiword, word, hword, hword_part, asciihword, hword_asciipart
  with private.portuguese_stop, private.english_stop, extensions.unaccent, pg_catalog.english_stem;
create text search configuration private.plain (copy = pg_catalog.simple);
alter text search configuration private.plain
  alter mapping for asciiword, word, hword, hword_part, asciihword, hword_asciipart
  with private.portuguese_stop, private.english_stop, extensions.unaccent, pg_catalog.simple;

create table private.passage_words (
  id bigint primary key references public.vectors (id) on delete cascade,
  owner_id uuid,
  words tsvector not null
);
comment on table private.passage_words is 'The words of each passage and of its document''s title; kept by a trigger.';
comment on column private.passage_words.id is 'The passage.';
comment on column private.passage_words.owner_id is 'Who alone may find it, as in vectors, whose rows are too wide to be looked up for each word.';
comment on column private.passage_words.words is 'Stemmed as Portuguese and as English, without accents.';
create index passage_words_words on private.passage_words using gin (words) with (fastupdate = off);

create table private.vocabulary (word text not null);
comment on table private.vocabulary is 'Every word that a passage has: what a misspelt one may have meant; kept by a trigger.';
comment on column private.vocabulary.word is 'In lower case, without accents, not stemmed. Two writers at once may add one twice.';
create index vocabulary_word on private.vocabulary (word);
create index vocabulary_similar on private.vocabulary using gin (word extensions.gin_trgm_ops) with (fastupdate = off);

-- For the functions below alone.
alter table private.passage_words enable row level security;
alter table private.vocabulary enable row level security;
revoke all on private.passage_words, private.vocabulary from public, anon, authenticated, cimt_api, service_role;

create function private.stemmed(some_text text) returns tsvector
  language sql immutable set search_path = pg_catalog, pg_temp as $$
  -- Between slashes Postgres sees the path of a file, not words.
  select to_tsvector('private.portuguese'::pg_catalog.regconfig, translate(some_text, '/_', '  '))
    || to_tsvector('private.english'::pg_catalog.regconfig, translate(some_text, '/_', '  '))
$$;
comment on function private.stemmed(text) is 'The words of a text, each as both stemmers have it.';
create function private.stemmed_query(some_text text) returns tsquery
  language sql immutable set search_path = pg_catalog, pg_temp as $$
  select plainto_tsquery('private.portuguese'::pg_catalog.regconfig, some_text)
    || plainto_tsquery('private.english'::pg_catalog.regconfig, some_text)
$$;
comment on function private.stemmed_query(text) is 'What finds a word, by either stemmer; nothing for a word that says nothing.';
create function private.plain_words(some_text text) returns text[]
  language sql immutable set search_path = pg_catalog, pg_temp as $$
  select tsvector_to_array(to_tsvector('private.plain'::pg_catalog.regconfig, translate(some_text, '/_', '  ')))
$$;
comment on function private.plain_words(text) is 'The different words of a text in lower case, without accents.';
revoke all on function private.stemmed(text), private.stemmed_query(text), private.plain_words(text) from public;

create function private.keep_words() returns trigger
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
  set enable_seqscan = off  -- for each word an index tells whether it is there; reading all for one would look cheap
as $$
declare
  gone pg_catalog.text[];
begin
  if tg_op in ('INSERT', 'UPDATE') then
    insert into private.passage_words as kept (id, owner_id, words)
      select v.id, v.owner_id, setweight(private.stemmed(coalesce(v.metadata ->> 'title', '')), 'A') || private.stemmed(v.content)
      from new_rows v
      on conflict (id) do update set owner_id = excluded.owner_id, words = excluded.words
        where kept.owner_id is distinct from excluded.owner_id or kept.words is distinct from excluded.words;
    insert into private.vocabulary (word)
      select distinct w.word from new_rows v
      cross join lateral unnest(private.plain_words(concat_ws(' ', v.metadata ->> 'title', v.content))) as w (word)
      where w.word ~ '^[a-z]{4,30}$' and not exists (select from private.vocabulary k where k.word = w.word);
  end if;
  -- What no passage has any more is forgotten: it may have been a person's own.
  if tg_op = 'UPDATE' then
    gone := array(
      select unnest(private.plain_words(concat_ws(' ', v.metadata ->> 'title', v.content))) from old_rows v
      except select unnest(private.plain_words(concat_ws(' ', v.metadata ->> 'title', v.content))) from new_rows v);
  elsif tg_op = 'DELETE' then
    gone := array(
      select distinct unnest(private.plain_words(concat_ws(' ', v.metadata ->> 'title', v.content))) from old_rows v);
  end if;
  delete from private.vocabulary k
  where k.word = any (gone)
    and not exists (select from private.passage_words p where p.words @@ private.stemmed_query(k.word) offset 0);
  return null;
end $$;
comment on function private.keep_words() is 'Trigger: keeps passage_words and vocabulary as vectors is.';
revoke all on function private.keep_words() from public;

create trigger keep_words_of_new after insert on public.vectors
  referencing new table as new_rows for each statement execute function private.keep_words();
create trigger keep_words_of_changed after update on public.vectors
  referencing old table as old_rows new table as new_rows for each statement execute function private.keep_words();
create trigger keep_words_of_gone after delete on public.vectors
  referencing old table as old_rows for each statement execute function private.keep_words();

-- Those that are there already. From the triggers on nobody writes passages until this is through; reading goes on.
insert into private.passage_words (id, owner_id, words)
  select v.id, v.owner_id, setweight(private.stemmed(coalesce(v.metadata ->> 'title', '')), 'A') || private.stemmed(v.content)
  from public.vectors v;
insert into private.vocabulary (word)
  select distinct w.word from public.vectors v
  cross join lateral unnest(private.plain_words(concat_ws(' ', v.metadata ->> 'title', v.content))) as w (word)
  where w.word ~ '^[a-z]{4,30}$';
