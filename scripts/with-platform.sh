# Sourced: starts `inkstone up` on a free port and a folder of its own, exports INKSTONE_URL, INKSTONE_BROKER and INKSTONE_KEY, and stops it
# when the script ends.
data=$(mktemp -d)
"$CARGO_TARGET_DIR/debug/inkstone" --data "$data" up --listen 127.0.0.1:0 --log warn >"$data/up.log" 2>&1 &
platform=$!
trap 'kill -INT $platform 2>/dev/null; wait $platform 2>/dev/null || true; rm -rf "$data"' EXIT
for _ in $(seq 600); do
  [ -f "$data/run.json" ] && break
  if ! kill -0 $platform 2>/dev/null; then
    cat "$data/up.log" >&2
    exit 1
  fi
  sleep 0.1
done
INKSTONE_URL=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["gateway"])' "$data/run.json")
INKSTONE_BROKER=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["broker"])' "$data/run.json")
INKSTONE_KEY=$(cat "$data/key")
export INKSTONE_URL INKSTONE_BROKER INKSTONE_KEY
