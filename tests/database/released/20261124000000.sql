-- Data of a project that runs the schema up to 20261124000000: an account with a profile and one without.
insert into auth.users (id, email) values
  ('11111111-1111-4111-8111-111111111111', 'ann@example.com'),
  ('22222222-2222-4222-8222-222222222222', 'bob@example.com');
insert into public.users (id, display_name) values ('11111111-1111-4111-8111-111111111111', 'Ann');
