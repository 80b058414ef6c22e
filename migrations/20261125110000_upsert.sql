-- Passages of one document are written by one function: who fills the table from elsewhere gets the same rules.

create function private.upsert_vectors(
  document_source text,
  document_owner uuid,
  document_language text,
  first_metadata jsonb,
  other_metadata jsonb,
  model text,
  chunks integer[],
  contents text[],
  hashes text[],
  embeddings text[]
) returns bigint
  language sql security invoker set search_path = '' as $$
  with written as (
    insert into public.vectors as stored
      (owner_id, source, chunk, content, content_hash, language, metadata, embedding_model, embedding)
    select document_owner, document_source, n.chunk, n.content, n.hash, document_language,
      case n.chunk when 0 then first_metadata else other_metadata end, model,
      -- One that is not given is taken from the passage of the same text as it was before this statement.
      coalesce(n.embedding::extensions.halfvec, (
        select v.embedding from public.vectors v
        where v.source = document_source and v.owner_id is not distinct from document_owner
          and v.content_hash = n.hash and v.embedding_model = model limit 1))
    from unnest(chunks, contents, hashes, embeddings) as n (chunk, content, hash, embedding)
    on conflict (owner_id, source, chunk) do update set
      content = excluded.content, content_hash = excluded.content_hash, language = excluded.language,
      metadata = excluded.metadata, embedding_model = excluded.embedding_model, embedding = excluded.embedding
    returning 1)
  select count(*) from written
$$;
comment on function private.upsert_vectors(text, uuid, text, jsonb, jsonb, text, integer[], text[], text[], text[]) is
  'Writes passages of one document, the four lists side by side; a null embedding is kept from the same text. How many.';
revoke all on function private.upsert_vectors(text, uuid, text, jsonb, jsonb, text, integer[], text[], text[], text[]) from public;
grant execute on function private.upsert_vectors(text, uuid, text, jsonb, jsonb, text, integer[], text[], text[], text[])
  to cimt_api, service_role;
