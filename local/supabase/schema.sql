-- What Supabase Auth keeps beside auth.users. As the real one, the stand-in brings its own schema up to date when it starts.
alter table auth.users
  add column if not exists aud text not null default 'authenticated',
  add column if not exists role text not null default 'authenticated',
  add column if not exists raw_app_meta_data jsonb not null default '{"provider": "email", "providers": ["email"]}',
  add column if not exists confirmation_sent_at timestamptz,
  add column if not exists recovery_sent_at timestamptz,
  add column if not exists email_confirmed_at timestamptz,
  add column if not exists last_sign_in_at timestamptz,
  add column if not exists updated_at timestamptz not null default now();

create table if not exists auth.one_time_tokens (
  token_hash text primary key,
  user_id uuid not null references auth.users (id) on delete cascade,
  kind text not null check (kind in ('signup', 'magiclink')),
  code_challenge text,
  challenge_method text,
  created_at timestamptz not null default now()
);
create table if not exists auth.flow_state (
  auth_code text primary key,
  user_id uuid not null references auth.users (id) on delete cascade,
  code_challenge text not null,
  challenge_method text not null,
  created_at timestamptz not null default now()
);
create table if not exists auth.sessions (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references auth.users (id) on delete cascade,
  created_at timestamptz not null default now()
);
create table if not exists auth.refresh_tokens (
  token text primary key,
  session_id uuid not null references auth.sessions (id) on delete cascade,
  parent text,
  revoked boolean not null default false,
  updated_at timestamptz not null default now()
);
create index if not exists refresh_tokens_session_id on auth.refresh_tokens (session_id);
