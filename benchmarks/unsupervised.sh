#!/bin/bash
# Priors without clean data (paper 2) against one of clean images, all of the same slices, network, steps and batch.
#
#   DATA=../shared/data OUT=runs/unsupervised bash benchmarks/unsupervised.sh [clean noisy undersampled others lines_r4 denoising evaluate evaluate_lines curves]
#
# Without arguments all parts. A part that was cut goes on when started again; parts may run side by side. STEPS=20 BANK=8 IMAGES=1 RATES=4 LEVELS=0.06
# rehearses it in minutes.
#
# The clean prior is `em` with one round on full scans of (nearly) no noise: their images are the clean ones. `naive` trains on CG-SENSE images of
# undersampled scans as they are, judged where they were measured (`em` with one round): what the rounds have to beat.
set -euo pipefail
DATA=${DATA:-../shared/data}
OUT=${OUT:-runs/unsupervised}
STEPS=${STEPS:-4000}
BANK=${BANK:-400}
ROUNDS=${ROUNDS:-4}
IMAGES=${IMAGES:-8}
RATES=${RATES:-"2 4 8 16"}
NOISE=${NOISE:-0.02}
LEVELS=${LEVELS:-"0.03 0.06 0.12"}
SCANPRIOR=${SCANPRIOR:-scanprior}
COMMON=(--accelerator cpu --precision "${PRECISION:-bf16-mixed}" --threads "${THREADS:-1}" --seed 0)
TRAIN=("${COMMON[@]}" --data "$DATA/train/axial_t1_192.npz" --size 96 --patch 64 --batch 9 --widths 24,48,96 --blocks 1,1,1
  --coils 4 --bank "$BANK" --steps "$STEPS" --save-every $((STEPS < 1000 ? STEPS : 1000)))
T1=$DATA/test/axial_t1_192.npz

train() { # name, then options
  local name=$1
  shift
  if grep -qs "^steps: $STEPS$" "$OUT/$name/settings.txt"; then return; fi # done before
  $SCANPRIOR train --out "$OUT/$name" "${TRAIN[@]}" "$@"
}
points() { echo "--mask gaussian-2d --r $1 --noise $NOISE"; }
lines() { echo "--mask gaussian-1d --r $1 --noise $NOISE"; }

clean() { train clean --method em --rounds 1 --r 1 --noise 0.0002; }

# (a) from noisy, fully sampled scans
noisy() {
  local level
  for level in $LEVELS; do train "sure_$level" --method sure --noise "$level"; done
}

# (b) from undersampled scans
undersampled() {
  local r
  for r in $RATES; do train "em_r$r" --method em --rounds "$ROUNDS" $(points "$r"); done
}

# the other objectives, at R = 4
others() {
  train naive_r4 --method em --rounds 1 $(points 4)
  train split_r4 --method split $(points 4)
  train gsure_r4 --method gsure $(points 4)
}

# lines in the place of points
lines_r4() { train em_lines_r4 --method em --rounds "$ROUNDS" $(lines 4); }

evaluate_at() { # mask, R, prior (b), others
  local mask=$1 r=$2 methods=sense,l1-wavelet,tv,langevin:samples=1,prior=$OUT/clean/prior.safetensors name
  shift 2
  for name in clean "sure_${LEVELS%% *}" "$@"; do
    methods+=,pigdm:samples=4,prior=$OUT/$name/prior.safetensors,pnp-admm:samples=0,prior=$OUT/$name/prior.safetensors
  done
  $SCANPRIOR evaluate --data "$T1" --methods "$methods" --masks "$mask" --r "$r" --noise "$NOISE" --coils 4 --size 96 --images "$IMAGES" \
    --tune-on "$DATA/train/axial_t1_192.npz" --threads "${THREADS:-1}" --out "$OUT/evaluate_${mask}_r$r"
}

evaluate() {
  local r others
  for r in $RATES; do
    others=""
    if [ "$r" = 4 ]; then others="naive_r4 split_r4 gsure_r4"; fi
    evaluate_at gaussian-2d "$r" "em_r$r" $others
  done
}
evaluate_lines() { evaluate_at gaussian-1d 4 em_lines_r4; }

# one denoising of full scans: each prior from noisy images at its own level, beside the clean one and baselines
denoising() {
  local level
  for level in $LEVELS; do
    ${PYTHON:-python} "$(dirname "$0")/denoise.py" --data "$DATA" --sets T1 --images "$IMAGES" --tune-images 2 --size 96 --coils 4 --noise "$level" \
      --threads "${THREADS:-1}" --priors "$OUT/clean/prior.safetensors,$OUT/sure_$level/prior.safetensors"
  done | tee "$OUT/denoising.md"
}

# the last figures of every run
curves() {
  head -qn 1 "$OUT"/clean/curve.csv
  tail -n 1 "$OUT"/*/curve.csv
}

if [ $# -eq 0 ]; then set -- clean noisy undersampled others lines_r4 denoising evaluate evaluate_lines curves; fi
for part in "$@"; do "$part"; done
