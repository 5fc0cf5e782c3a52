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
PRECISION=${PRECISION:-bfloat16}

learn() { # name, then options
  local name=$1
  shift
  [ -e "$OUT/$name/report.md" ] && return
  scanprior learn-mask --data "$TRAIN" --test "$TEST" --precision "$PRECISION" --threads "$THREADS" --seed 0 \
    --out "$OUT/$name" "$@"
}

# 1-D: eight coils and one, against even lines, Gaussian draws and the best of ten
lines() {
  local coils r
  for r in 6 8 4; do
    for coils in 8 1; do
      learn "lines_c${coils}_r$r" --coils "$coils" --r "$r" --acs 12 --together 1 --test-images 52
    done
  done
}

# 2-D: points of two phase encodings, against Gaussian draws, Poisson discs and the best of ten of them
points() {
  local coils
  for coils in 8 1; do
    learn "points_c${coils}_r12" --kind points --coils "$coils" --r 12 --acs 16 --together 16 --size 128 --test-images 52
  done
}

# how many training images it takes
few() {
  local images
  for images in 1 2 5 20; do
    learn "few_$images" --coils 1 --r 6 --acs 8 --together 1 --size 96 --images "$images" --test-images 52 --best-of 0
  done
}

# learners and objectives
learners() {
  local small=(--coils 1 --r 6 --acs 8 --size 96 --test-images 52 --best-of 0)
  learn learners_gumbel "${small[@]}" --learner gumbel
  learn learners_gumbel_posterior "${small[@]}" --learner gumbel --objective posterior-mean
  learn learners_gumbel_consistency "${small[@]}" --learner gumbel --objective data-consistency
}

# paper 4, Fig. 4: the noise level of the objective
noise() {
  local sigma
  for sigma in 0.02 0.1 0.3 1 3 10; do
    learn "noise_$sigma" --coils 1 --r 6 --acs 8 --size 96 --test-images 52 --best-of 0 --learner gumbel --steps 200 \
      --objective posterior-mean --sigma "$sigma"
  done
}

# the order between masks under other samplers and numbers of steps
samplers() {
  local own=start=sense,sigma_start=1.0,samples=1
  scanprior evaluate --precision "$PRECISION" --threads "$THREADS" --seed 0 --data "$TEST" --images 13 \
    --coils 8 --acs 12 --masks "uniform-1d,gaussian-1d,$OUT/lines_c8_r6/mask.npz" --r 6 --out "$OUT/samplers" \
    --methods "tv,pnp-admm:samples=0,pnp-admm:samples=0,iterations=9,dds:samples=1,dds:$own,steps=20" \
    --methods "dds:$own,steps=50,pigdm:samples=1,steps=20"
}

# 320 x 320 from five images, on two cores
speed() {
  THREADS=2 TRAIN=$DATA/train/t1_0p67mm_274x384x384.nii.gz
  [ -e "$OUT/speed/report.md" ] || scanprior learn-mask --data "$TRAIN" --size 320 --coils 8 --r 6 \
    --precision "$PRECISION" --threads 2 --seed 0 --out "$OUT/speed"
}

for part in "${@:-lines points few learners noise samplers speed}"; do
  for name in $part; do "$name"; done
done
