#!/usr/bin/env bash
# What a new user does with the README's commands alone, each step timed, as a Markdown table on standard output:
#   bash benchmarks/newcomer.sh photo.jpg > benchmarks/results/newcomer.md
# In a new environment in an empty folder. The model is efficientnet_lite0, which needs no network but PyPI.
set -euo pipefail
export LC_ALL=C
photo=$(realpath "$1")
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/source" "$folder/work"
git -C "$repository" archive HEAD | tar -x -C "$folder/source"
repository=$folder/source
cd "$folder/work"
cp "$photo" "photo.${photo##*.}"
photo=photo.${photo##*.}

step() {
    local what=$1 start=$EPOCHREALTIME
    shift
    "$@" > step.log 2>&1 || { cat step.log >&2; exit 1; }
    printf '| %s | `%s` | %.1f |\n' "$what" "${*//"$repository"/.}" "$(awk "BEGIN { print $EPOCHREALTIME - $start }")"
}

echo "# A newcomer's first figure and table"
echo
echo "\`bash benchmarks/newcomer.sh PHOTO\` on $(nproc) cores, $(date +%F), load average $(cut -d" " -f1 /proc/loadavg) at the start. The first step"
echo "depends on the network and pip's cache."
echo
echo "| step | command | s |"
echo "| --- | --- | --- |"
step "environment" python3 -m venv .venv
step "install" .venv/bin/python -m pip install -q "$repository[imagenet]"
PATH=$folder/work/.venv/bin:$PATH
step "figure, pdf" captum-unioncam explain "$photo" --model efficientnet_lite0 --max-channels 64 --format pdf
ls unioncam/*.pdf > /dev/null
step "three methods on the photo" captum-unioncam compare "$photo" --model efficientnet_lite0 --max-channels 64 --steps 20 \
    --methods union_cam,score_cam,grad_cam
step "three methods on a data set" captum-unioncam evaluate demo --limit 8 --steps 20 --out evaluation \
    --methods union_cam,score_cam,grad_cam
step "tables and plots" captum-unioncam report evaluation
grep -q "begin{tabular}" evaluation/report/table.tex
echo
echo "The figure: \`$(cd unioncam && ls *.pdf)\`. LaTeX of the table:"
echo
echo '```text'
cat evaluation/report/table.tex
echo '```'
