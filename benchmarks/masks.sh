#!/bin/bash
# Learned masks against families (paper 4) and across samplers; benchmarks/masks.md tells what came out.
#
#   DATA=../shared/data OUT=runs/masks bash benchmarks/masks.sh [lines points few samplers noise learners speed]
#
# Without arguments all parts. A mask that was learned is not learned again. Five training slices, and test slices of
# other subjects.
set -euo pipefail
DATA=${DATA:-../shared/data}
OUT=${OUT:-runs/masks}
THREADS=${THREADS:-1}
TRAIN=$DATA/train/axial_t1_192.npz
TEST=$DATA/test/axial_t1_192.npz
METHOD=pnp-admm:samples=0,precision=${PRECISION:-bfloat16}

learn() { # name, then options
  local name=$1
  shift
  [ -e "$OUT/$name/report.md" ] && return
  scanprior learn-mask --data "$TRAIN" --test "$TEST" --method "$METHOD" --threads "$THREADS" --seed 0 \
    --out "$OUT/$name" "$@"
}

# 1-D: one coil and eight, against even lines, Gaussian draws and the best of ten
lines() {
  local coils r
  for coils in 8 1; do
    for r in 6 8 4; do
      learn "lines_c${coils}_r$r" --coils "$coils" --r "$r" --acs 12 --together 1 --test-images 52
    done
  done
}

# 2-D: points of two phase encodings, against Gaussian draws, Poisson discs and the best of ten of them
points() {
  local coils
  for coils in 8 1; do
    learn "points_c${coils}_r12" --kind points --coils "$coils" --r 12 --acs 16 --together 128 --shortlist 0 \
      --size 128 --test-images 52 --best-of 10
  done
}
