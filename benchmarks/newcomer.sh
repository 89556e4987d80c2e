#!/usr/bin/env bash
# What a new user does with the README's commands, each step timed, as a Markdown table on standard output:
#   bash benchmarks/newcomer.sh photo.jpg > benchmarks/results/newcomer.md
# In a new environment in an empty folder. The model is efficientnet_lite0, which needs no network but PyPI. With the
# folder of an environment as second argument, that is used, and nothing is installed.
set -euo pipefail
export LC_ALL=C
photo=$(realpath "$1")
environment=${2:+$(realpath "$2")}
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
    local what=$1 TIMEFORMAT='%R %U %S'
    shift
    { time "$@" > step.log 2>&1; } 2> seconds || { cat step.log >&2; exit 1; }
    printf '| %s | `%s` | %s |\n' "$what" "${*//"$repository"/.}" "$(awk '{ printf "%.1f | %.1f", $1, $2 + $3 }' seconds)"
}

echo "# A newcomer's first figure and table"
echo
echo "\`bash benchmarks/newcomer.sh PHOTO\` on $(nproc) cores, $(date +%F), load average $(cut -d" " -f1 /proc/loadavg) at the start. The"
echo "installation depends on the network and pip's cache."
echo
echo "| step | command | s | s of a processor |"
echo "| --- | --- | --- | --- |"
if [ -z "$environment" ]; then
    environment=$folder/work/.venv
    step "environment" python3 -m venv .venv
    step "install" .venv/bin/python -m pip install -q "$repository[imagenet]"
fi
PATH=$environment/bin:$PATH
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
