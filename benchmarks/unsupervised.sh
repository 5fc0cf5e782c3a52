#!/bin/bash
# Priors without clean data (paper 2) against one of clean images, all of the same slices, network and steps; what a core of a CPU can do.
#
#   DATA=../shared/data OUT=runs/unsupervised bash benchmarks/unsupervised.sh [clean noisy undersampled naive denoising evaluate curves]
#
# Without arguments all parts. A part that was cut goes on when started again. STEPS=20 BANK=8 IMAGES=1 RATES=4 rehearses it in minutes.
#
# Time of one core (measured, seconds of processor time): a step of clean, naive or em 0.16, sure 0.33, split 0.6, gsure 0.8; a posterior image 0.3.
# So of 3000 steps and 400 scans: clean and naive 8 min each, sure 17 min a level, split 30 min and em 8 + 8 min an R, gsure 40 min: 5 hours in all, and
# about half an hour of evaluation. On a core that is shared it takes as much longer. RATES=4 LEVELS=0.06 is a third of it.
#
# The clean prior is `em` with one round on full scans of (nearly) no noise: their images are the clean ones. `naive` trains on
# CG-SENSE images of undersampled scans as if they were clean: what the losses have to beat.
set -euo pipefail
DATA=${DATA:-../shared/data}
OUT=${OUT:-runs/unsupervised}
STEPS=${STEPS:-3000}
BANK=${BANK:-400}
ROUNDS=${ROUNDS:-4}
IMAGES=${IMAGES:-4}
RATES=${RATES:-"2 4 8 16"}
NOISE=${NOISE:-0.02}
LEVELS=${LEVELS:-"0.03 0.06 0.12"}
SCANPRIOR=${SCANPRIOR:-scanprior}
COMMON=(--accelerator cpu --precision "${PRECISION:-32-true}" --threads "${THREADS:-1}" --seed 0)
TRAIN=("${COMMON[@]}" --data "$DATA/train/axial_t1_192.npz" --size 96 --patch 64 --widths 24,48,96 --blocks 1,1,1
  --coils 4 --bank "$BANK" --steps "$STEPS" --save-every $((STEPS < 500 ? STEPS : 500)))
T1=$DATA/test/axial_t1_192.npz

train() { # name, then options
  local name=$1
  shift
  if grep -qs "^steps: $STEPS$" "$OUT/$name/settings.txt"; then return; fi # done before
  $SCANPRIOR train --out "$OUT/$name" "${TRAIN[@]}" "$@"
}
# 1-D masks of 96 lines with 8 of ACS go up to R = 12
mask() { if [ "$1" -gt 8 ]; then echo "--mask gaussian-2d"; else echo "--mask gaussian-1d"; fi; }

clean() { train clean --method em --rounds 1 --r 1 --noise 0.0002; }

# (a) from noisy, fully sampled scans
noisy() {
  local level
  for level in $LEVELS; do train "sure_$level" --method sure --noise "$level"; done
}

# (b) from undersampled scans: held-out lines, then expectation maximisation from there; GSURE beside them at R = 4
undersampled() {
  local r
  for r in $RATES; do
    train "split_r$r" --method split $(mask "$r") --r "$r" --noise "$NOISE"
    train "em_r$r" --method em --rounds "$ROUNDS" $(mask "$r") --r "$r" --noise "$NOISE" --begin-with "$OUT/split_r$r/prior.safetensors"
  done
  train gsure_r4 --method gsure $(mask 4) --r 4 --noise "$NOISE"
  train em_alone_r4 --method em --rounds "$ROUNDS" $(mask 4) --r 4 --noise "$NOISE"
}

naive() { train naive_r4 --method em --rounds 1 $(mask 4) --r 4 --noise "$NOISE"; }

evaluate() {
  local r priors name methods
  for r in $RATES; do
    priors="clean sure_${LEVELS%% *} split_r$r em_r$r"
    if [ "$r" = 4 ]; then priors+=" gsure_r4 em_alone_r4 naive_r4"; fi
    methods=sense,l1-wavelet,tv,langevin:samples=1,prior=$OUT/clean/prior.safetensors
    for name in $priors; do
      methods+=,pigdm:samples=4,prior=$OUT/$name/prior.safetensors,pnp-admm:samples=0,prior=$OUT/$name/prior.safetensors
    done
    $SCANPRIOR evaluate --data "$T1" --methods "$methods" $(mask "$r" | sed s/--mask/--masks/) --r "$r" --noise "$NOISE" --coils 4 \
      --size 96 --images "$IMAGES" --tune-on "$DATA/train/axial_t1_192.npz" --threads "${THREADS:-1}" --out "$OUT/evaluate_r$r"
  done
}

# one denoising of full scans: each prior from noisy images at its own level, beside the clean one
denoising() {
  local level
  for level in $LEVELS; do
    ${PYTHON:-python} "$(dirname "$0")/unsupervised_denoising.py" --data "$T1" --images $((2 * IMAGES)) --noise "$level" \
      --priors "$OUT/clean/prior.safetensors,$OUT/sure_$level/prior.safetensors"
  done | tee "$OUT/denoising.md"
}

# the last figures of every run: of sure the estimated error of denoised scans
curves() { tail -qn 1 "$OUT"/*/curve.csv; }

if [ $# -eq 0 ]; then set -- clean noisy undersampled naive denoising evaluate curves; fi
for part in "$@"; do "$part"; done
