#!/bin/sh
# Writes what differs between environments into run/, then serves the page.
#   API_URL, SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY   where the page finds what it works with; the first two as browsers see them
#   SIGN_UP    open (default), or invited: nobody gets an account by asking for a mail
#   PORT       default 8080
set -eu
cd "$(dirname "$0")"

stop() {
  echo "web: $1" >&2
  exit 1
}
# What could end a header or a string gets no further than here. The pattern of `case` sees ends of lines, too.
origin() { # NAME VALUE: scheme and host of an address
  case $2 in *[!A-Za-z0-9:/._~-]*) stop "$1 holds what no address holds" ;; esac
  printf '%s' "$2" | grep -qxE 'https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?' || stop "$1='$2' is not an address such as https://api.example.com"
  printf '%s' "$2" | sed -E 's,^(https?://[^/]+).*,\1,'
}
api=$(origin API_URL "${API_URL:-}")
supabase=$(origin SUPABASE_URL "${SUPABASE_URL:-}")
key=${SUPABASE_PUBLISHABLE_KEY:-}
case $key in
  '' | *[!A-Za-z0-9._-]*) stop "SUPABASE_PUBLISHABLE_KEY is not set, or is no key. It is public: Supabase → Settings → API Keys" ;;
  sb_secret_*) stop "SUPABASE_PUBLISHABLE_KEY holds a secret key, which everybody would read. Take the publishable one" ;;
esac
sign_up=${SIGN_UP:-open}
case $sign_up in open | invited) ;; *) stop "SIGN_UP='$sign_up' is neither open nor invited" ;; esac
port=${PORT:-8080}
case $port in '' | *[!0-9]*) stop "PORT='$port' is not a number" ;; esac

printf 'window.CIMT = {"apiUrl": "%s", "supabaseUrl": "%s", "publishableKey": "%s", "signUp": "%s"}\n' \
  "${API_URL%/}" "${SUPABASE_URL%/}" "$key" "$sign_up" >run/config.js
printf '{"status": "ok", "revision": "%s"}\n' "$(cat revision)" >run/healthz.json
printf 'listen %s;\n' "$port" >run/listen.conf
# Only our own files are run and shown; requests go to the API and to Supabase. No `unsafe-…` anywhere.
policy="default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'"
policy="$policy; connect-src 'self' $api $supabase; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
cat >run/headers.conf <<END
add_header Content-Security-Policy "$policy" always;
add_header X-Content-Type-Options nosniff always;
add_header Referrer-Policy no-referrer always;
add_header Permissions-Policy "camera=(), geolocation=(), microphone=(), payment=(), usb=()" always;
add_header Cross-Origin-Opener-Policy same-origin always;
END
exec nginx -p "$PWD" -c nginx.conf -e stderr
