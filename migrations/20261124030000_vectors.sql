-- What the answers are based on: passages of documents with their embeddings, and the search over them.

create table public.vectors (
  id bigint generated always as identity primary key,
  owner_id uuid references auth.users (id) on delete cascade,
  source text not null check (char_length(source) between 1 and 2000),
  chunk integer not null check (chunk >= 0),
  content text not null check (char_length(content) between 1 and 20000),
  content_hash text not null check (content_hash ~ '^[0-9a-f]{64}$'),
  language text not null default 'simple'
    check (language in ('simple', 'en', 'pt', 'es', 'fr', 'de', 'it')),
  metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
  embedding_model text not null,
  -- In the row itself: an embedding kept outside (TOAST) makes the planner think that reading all of them is cheap.
  embedding extensions.halfvec(1536) not null,
  search tsvector not null generated always as (
    case language
      when 'en' then to_tsvector('english'::regconfig, content)
      when 'pt' then to_tsvector('portuguese'::regconfig, content)
      when 'es' then to_tsvector('spanish'::regconfig, content)
      when 'fr' then to_tsvector('french'::regconfig, content)
      when 'de' then to_tsvector('german'::regconfig, content)
      when 'it' then to_tsvector('italian'::regconfig, content)
      else to_tsvector('simple'::regconfig, content)
    end) stored,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique nulls not distinct (owner_id, source, chunk)
);
alter table public.vectors alter column embedding set storage plain;
comment on table public.vectors is 'Passages of documents with their embeddings.';
comment on column public.vectors.id is 'Number of the passage.';
comment on column public.vectors.owner_id is 'Who alone may find it; null: every user.';
comment on column public.vectors.source is 'The document: its URL or path.';
comment on column public.vectors.chunk is 'Position in the document, from 0.';
comment on column public.vectors.content is 'The passage''s text.';
comment on column public.vectors.content_hash is 'SHA-256 of the text, in hexadecimal: equal ones need no new embedding.';
comment on column public.vectors.language is 'Its language, which decides how words are stemmed; simple: not known.';
comment on column public.vectors.metadata is 'What a search can be narrowed by, such as {"title", "section"}.';
comment on column public.vectors.embedding_model is 'The model that made the embedding.';
comment on column public.vectors.embedding is 'The embedding, 1536 numbers of half precision.';
comment on column public.vectors.search is 'The words of the text, for full-text search.';
comment on column public.vectors.created_at is 'When it was added.';
comment on column public.vectors.updated_at is 'When it was changed last.';
create index vectors_embedding on public.vectors using hnsw (embedding extensions.halfvec_cosine_ops);
create index vectors_search on public.vectors using gin (search);
create index vectors_metadata on public.vectors using gin (metadata jsonb_path_ops);
create index vectors_source on public.vectors (source);

create trigger touch before update on public.vectors
  for each row execute function private.touch();

alter table public.vectors enable row level security;
revoke all on public.vectors from anon, authenticated;
grant select on public.vectors to authenticated;
grant select, insert, update, delete on public.vectors to cimt_api, service_role;

create policy vectors_read on public.vectors for select to authenticated, cimt_api
  using (owner_id is null or owner_id = (select auth.uid()));
-- The API sets this claim for its ingest routes alone, which ask for the service credential.
create policy vectors_ingest on public.vectors to cimt_api
  using ((select auth.role()) = 'service_role') with check ((select auth.role()) = 'service_role');
