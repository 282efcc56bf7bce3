#!/bin/sh
# Signs device-proc in an app-like bundle with its provisioning profile, and cordon: plain, or in a
# bundle of its own with --cordon-profile, for `--windows own-connection`, where it opens the dext too.
# Without --deep, with the hardened runtime. Has not run on a Mac yet: see docs/macos.md.
set -eu

usage() {
    echo "usage: $0 --programs DIR --out DIR --identity NAME --profile FILE.provisionprofile" >&2
    echo "       --bundle-id ID --dext-bundle-id ID" >&2
    echo "       [--cordon-profile FILE.provisionprofile --cordon-bundle-id ID]" >&2
    exit 2
}

programs= out= identity= profile= bundle= dext= cordon_profile= cordon_bundle=
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || usage
    case $1 in
    --programs) programs=$2 ;;
    --out) out=$2 ;;
    --identity) identity=$2 ;;
    --profile) profile=$2 ;;
    --bundle-id) bundle=$2 ;;
    --dext-bundle-id) dext=$2 ;;
    --cordon-profile) cordon_profile=$2 ;;
    --cordon-bundle-id) cordon_bundle=$2 ;;
    *) usage ;;
    esac
    shift 2
done
[ -n "$programs" ] && [ -n "$out" ] && [ -n "$identity" ] && [ -n "$profile" ] || usage
[ -n "$bundle" ] && [ -n "$dext" ] || usage
if [ -n "$cordon_profile$cordon_bundle" ]; then
    [ -n "$cordon_profile" ] && [ -n "$cordon_bundle" ] || usage
fi
for name in "$bundle" "$dext" "${cordon_bundle:-none}"; do
    case $name in
    *[!A-Za-z0-9.-]*)
        echo "$0: '$name' is no bundle identifier" >&2
        exit 1
        ;;
    esac
done
for file in "$programs/cordon" "$programs/device-proc" "$profile" "${cordon_profile:-$profile}"; do
    [ -f "$file" ] || {
        echo "$0: there is no $file" >&2
        exit 1
    }
done

here=$(cd "$(dirname "$0")" && pwd)
entitlements=$(mktemp)
trap 'rm -f "$entitlements"' EXIT
sed "s/DEXT_BUNDLE_ID/$dext/" "$here/userclient.entitlements" >"$entitlements"

# sign WHAT ENTITLEMENTS
sign() {
    codesign --force --options runtime --timestamp --sign "$identity" --entitlements "$2" "$1"
    codesign --verify --strict --verbose=2 "$1"
    codesign --display --entitlements - "$1"
}

# in_bundle PROGRAM PROFILE BUNDLE_ID: a program that opens the dext
in_bundle() {
    app=$out/$1.app
    rm -rf "$app"
    mkdir -p "$app/Contents/MacOS"
    cp "$programs/$1" "$app/Contents/MacOS/$1"
    cp "$2" "$app/Contents/embedded.provisionprofile"
    sed -e "s/BUNDLE_ID/$3/" -e "s/PROGRAM/$1/" "$here/Info.plist" >"$app/Contents/Info.plist"
    sign "$app" "$entitlements"
}

in_bundle device-proc "$profile" "$bundle"
if [ -n "$cordon_profile" ]; then
    in_bundle cordon "$cordon_profile" "$cordon_bundle"
    cordon=$out/cordon.app/Contents/MacOS/cordon
else
    cp "$programs/cordon" "$out/cordon"
    sign "$out/cordon" "$here/cordon.entitlements"
    cordon=$out/cordon
fi
echo "cordon is $cordon"
echo "device-proc is $out/device-proc.app/Contents/MacOS/device-proc: CORDON_DEVICE_PROC says so"
