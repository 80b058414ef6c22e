-- The passages of everybody; the statistics of the index say how many there are, at no cost to whoever searches.
create index concurrently vectors_shared on public.vectors (id) where owner_id is null;
