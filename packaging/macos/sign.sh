#!/bin/sh
# Puts device-proc into an app-like bundle with its provisioning profile, and signs it and cordon.
# Inside out, without --deep, with the hardened runtime. Has not run on a Mac yet: see docs/macos.md.
set -eu

usage() {
    echo "usage: $0 --programs DIR --out DIR --identity NAME --profile FILE.provisionprofile" >&2
    echo "       --bundle-id ID --dext-bundle-id ID" >&2
    exit 2
}

programs= out= identity= profile= bundle= dext=
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case $1 in
    --programs) programs=$2 ;;
    --out) out=$2 ;;
    --identity) identity=$2 ;;
    --profile) profile=$2 ;;
    --bundle-id) bundle=$2 ;;
    --dext-bundle-id) dext=$2 ;;
    *) usage ;;
    esac
    shift 2
done
[ -n "$programs" ] && [ -n "$out" ] && [ -n "$identity" ] && [ -n "$profile" ] || usage
[ -n "$bundle" ] && [ -n "$dext" ] || usage
for name in "$bundle" "$dext"; do
    case $name in
    *[!A-Za-z0-9.-]*)
        echo "$0: '$name' is no bundle identifier" >&2
        exit 1
        ;;
    esac
done
for file in "$programs/cordon" "$programs/device-proc" "$profile"; do
    [ -f "$file" ] || {
        echo "$0: there is no $file" >&2
        exit 1
    }
done

here=$(cd "$(dirname "$0")" && pwd)
app=$out/device-proc.app
rm -rf "$app"
mkdir -p "$app/Contents/MacOS"
cp "$programs/device-proc" "$app/Contents/MacOS/device-proc"
cp "$profile" "$app/Contents/embedded.provisionprofile"
sed "s/BUNDLE_ID/$bundle/" "$here/Info.plist" >"$app/Contents/Info.plist"
entitlements=$(mktemp)
trap 'rm -f "$entitlements"' EXIT
sed "s/DEXT_BUNDLE_ID/$dext/" "$here/device-proc.entitlements" >"$entitlements"
codesign --force --options runtime --timestamp --sign "$identity" \
    --entitlements "$entitlements" "$app"
cp "$programs/cordon" "$out/cordon"
codesign --force --options runtime --timestamp --sign "$identity" \
    --entitlements "$here/cordon.entitlements" "$out/cordon"
codesign --verify --strict --verbose=2 "$app"
codesign --verify --strict --verbose=2 "$out/cordon"
codesign --display --entitlements - "$app"
echo "device-proc is $app/Contents/MacOS/device-proc: give it to cordon by --device-proc"
