-- Who uses the product: one profile for each account of Supabase Auth.

create schema if not exists extensions;
create extension if not exists vector with schema extensions;

create table public.users (
  id uuid primary key references auth.users (id) on delete cascade,
  display_name text check (char_length(display_name) <= 200),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

comment on table public.users is 'Profile of an account; the account itself is auth.users.';
comment on column public.users.id is 'The account''s id in auth.users.';
comment on column public.users.display_name is 'Name that the user chose; null until then.';
comment on column public.users.created_at is 'When the profile was made.';
comment on column public.users.updated_at is 'When the profile was changed last.';

alter table public.users enable row level security;

-- New tables are not exposed by default any more: every right is said here.
revoke all on public.users from anon, authenticated;
grant select, update (display_name) on public.users to authenticated;
grant select, insert, update, delete on public.users to service_role;

create policy users_read_own on public.users
  for select to authenticated using (id = (select auth.uid()));
create policy users_update_own on public.users
  for update to authenticated using (id = (select auth.uid())) with check (id = (select auth.uid()));
