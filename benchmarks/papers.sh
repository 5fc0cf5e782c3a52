#!/bin/bash
# The papers' findings and the choice of the default, by `scanprior evaluate`; benchmarks/papers.md tells what came out.
#
#   DATA=../shared/data OUT=runs/papers bash benchmarks/papers.sh [choice choice_samplers choice_pnp calibrate choice_slow default recorded langevin score_mri magnitude shift spread robust vae_choice vae vae_horizontal vae_search]
#
# Without arguments all parts. A part that was cut goes on when started again. Weights of the baselines are tuned on
# training images wherever they are compared; `choice` looks at training images only, the others at test images.
set -euo pipefail
DATA=${DATA:-../shared/data}
OUT=${OUT:-runs/papers}
COMMON=(--precision "${PRECISION:-bfloat16}" --threads "${THREADS:-1}" --seed 0)
T1=$DATA/test/axial_t1_192.npz
T2=$DATA/test/axial_t2_0p45mm_512x480.npz
evaluate() { scanprior evaluate "${COMMON[@]}" "$@"; }

# quality against NFE on training images: what the default is chosen by; `dds` here begins with CG-SENSE
choice() {
  local own=start=sense,sigma_start=1.0,samples=4
  local curve=tv,pnp-admm:samples=0,iterations=4,pnp-admm:samples=0,iterations=9,pnp-admm:samples=0
  local steps
  for steps in 50 100; do curve+=,pnp-admm:samples=0,iterations=$((steps - 1)),decrease=$((steps * 3 / 5)); done
  curve+=,dds
  for steps in 5 10 20 50; do curve+=,dds:steps=$steps,$own; done
  for set in axial_t1_192 axial_t2_0p43mm_512x384; do
    evaluate --data "$DATA/train/$set.npz" --methods "$curve" --masks gaussian-1d --r 4,8 --images 2 --size 128 \
      --out "$OUT/choice_$set"
  done
}

# the same for the other samplers, which take longer
choice_samplers() {
  local curve=dds:steps=100,start=sense,sigma_start=1.0,samples=4 steps set
  for steps in 5 10 25 50; do curve+=,daps:steps=$steps,samples=4; done
  for steps in 5 12 25; do curve+=,pula:levels=$steps,samples=4; done
  for steps in 10 20 50; do curve+=,pigdm:steps=$steps,samples=4; done
  for set in axial_t1_192 axial_t2_0p43mm_512x384; do
    evaluate --data "$DATA/train/$set.npz" --methods "$curve" --masks gaussian-1d --r 4,8 --images 2 --size 128 \
      --out "$OUT/choice_samplers_$set"
  done
}

# settings of plug-and-play at three noise levels, on training images
choice_pnp() {
  local methods=tv,pnp-admm:samples=0 value set
  for value in 0.05 0.1; do methods+=,pnp-admm:samples=0,sigma=$value; done
  for value in 0.35 1.0 2.0; do methods+=,pnp-admm:samples=0,penalty=$value; done
  for value in 10 200 1000000; do methods+=,pnp-admm:samples=0,max_ratio=$value; done
  for value in null 0.02; do methods+=,pnp-admm:samples=0,final_sigma=$value; done
  methods+=,pnp-admm:samples=0,sigma_start=null,pnp-admm:samples=0,iterations=39
  for set in axial_t1_192 axial_t2_0p43mm_512x384; do
    evaluate --data "$DATA/train/$set.npz" --methods "$methods" --masks gaussian-1d,gaussian-2d --r 4,8 --snr 15,25,40 --images 2 --size 128 \
      --out "$OUT/choice_pnp_$set"
  done
}

# the factor of the standard deviation, on training images
calibrate() {
  local set
  for set in axial_t1_192 axial_t2_0p43mm_512x384; do
    evaluate --data "$DATA/train/$set.npz" --methods pnp-admm:std_factor=1,dds:std_factor=1 --masks uniform-1d,gaussian-1d,gaussian-2d --r 4,8 \
      --snr 15,25,40 --images 2 --size 128 --out "$OUT/calibrate_$set"
  done
}

# settings of the slow samplers, on training images too
choice_slow() {
  local methods=langevin:samples=1,step=0.1 value
  for value in 0.2 0.5; do methods+=,langevin:samples=1,step=$value; done
  for value in 0.2 0.5 1.0; do methods+=,pc:samples=1,lam=$value; done
  methods+=,pc:samples=1,lam=1.0,sigma_end=0.01
  for value in 0.2 0.5 1.0; do methods+=,pc-ccdf:samples=1,lam=$value; done
  for value in 0.1 0.6; do methods+=,pc-ccdf:samples=1,sigma_start=$value; done
  for value in 0.1 0.2 0.3; do methods+=,pc-ccdf:samples=1,start=tv,sigma_start=$value; done
  methods+=,pc-ccdf:samples=1,sigma_start=1.0,pc:samples=1,lam=0.5,steps=100
  for value in 0.1 0.2 0.3; do methods+=,pc-ccdf:samples=1,start=pnp-admm,sigma_start=$value; done
  methods+=,pc-ccdf:samples=1,start=pnp-admm,sigma_start=0.1,lam=0.5
  evaluate --data "$DATA/train/axial_t1_192.npz" --methods "$methods" --masks gaussian-1d --r 4 --images 2 --size 96 \
    --out "$OUT/choice_slow"
}

# the default against tuned baselines, T1 and T2 test slices
default() {
  evaluate --data "$T1" --tune-on "$DATA/train/axial_t1_192.npz" --tune-images 2 \
    --methods sense,l1-wavelet,tv,pnp-admm,dds --masks gaussian-1d --r 4,8 --images 3 --out "$OUT/default_t1"
  evaluate --data "$T2" --tune-on "$DATA/train/axial_t2_0p43mm_512x384.npz" --tune-images 2 --size 256 \
    --methods sense,l1-wavelet,tv,pnp-admm,dds --masks gaussian-1d --r 4,8 --images 3 --out "$OUT/default_t2"
}

# the shipped recipes on the recorded scan of R = 4, through the stream; benchmarks/recorded.py looks at all of them
recorded() {
  evaluate --data "$DATA/recorded/brain_t2_8ch_r4.h5" --truth "$DATA/recorded/brain_t2_8ch_truth.npz" \
    --methods sense,l1-wavelet,tv,pnp-admm,dds,l1-wavelet:maps.crop=0,tv:maps.crop=0,pnp-admm:maps.crop=0,dds:maps.crop=0 \
    --methods dds:start=sense,sigma_start=1.0,steps=20,samples=4,dds:start=sense,sigma_start=1.0,steps=20,samples=4,prior=magnitude,vae --out "$OUT/recorded_r4"
}

# paper 2: pseudo-inverse guidance against Langevin, R = 2 to 16
langevin() {
  evaluate --data "$T1" --methods langevin:samples=1,pigdm:samples=1,dds:samples=1,dds,pnp-admm --coils 4 \
    --masks gaussian-2d --r 2,4,8,16 --images 2 --size 128 --out "$OUT/langevin"
}

# paper 5: Score-MRI against TV, hybrid, CCDF; and the default against its 500 steps
score_mri() {
  local methods=tv,pc:samples=1,pc-ccdf:samples=1,pc-ccdf:samples=1,algorithm=coils,pc-ccdf:samples=1,algorithm=hybrid
  methods+=,pc-ccdf:samples=1,start=pnp-admm,sigma_start=0.1,lam=0.5,pnp-admm,dds
  evaluate --data "$T1" --tune-on "$DATA/train/axial_t1_192.npz" --tune-images 2 --methods "$methods" --coils 4 \
    --masks uniform-1d,gaussian-1d --r 4,8 --images 2 --size 128 --out "$OUT/score_mri_lines"
  evaluate --data "$T1" --tune-on "$DATA/train/axial_t1_192.npz" --tune-images 2 --methods "$methods" --coils 4 \
    --masks gaussian-2d,poisson-2d --r 8,15 --images 2 --size 128 --out "$OUT/score_mri_points"
}

# papers 1 and 5: a magnitude-only prior on complex data; beside the complex one on training images too
magnitude() {
  local set
  for set in axial_t1_192 axial_t2_0p43mm_512x384; do
    evaluate --data "$DATA/train/$set.npz" --masks gaussian-1d --r 4,8 \
      --methods pnp-admm,dds:start=sense,sigma_start=1.0,steps=20,samples=4 \
      --methods dds:start=sense,sigma_start=1.0,steps=20,samples=4,prior=magnitude \
      --images 2 --size 128 --out "$OUT/magnitude_$set"
  done
  evaluate --data "$T1" --methods sense,tv,pnp-admm,pc-ccdf:samples=1,prior=magnitude \
    --methods dds:start=sense,sigma_start=1.0,steps=20,dds:start=sense,sigma_start=1.0,steps=20,prior=magnitude \
    --masks gaussian-1d --r 4 --images 3 --size 128 --out "$OUT/magnitude"
}

# papers 1 and 5: a prior that saw T1 alone (WEIGHTS, of `scanprior train` without the T2 file), on T1, T2, and a phantom and a body it never saw
shift() {
  local weights=${WEIGHTS:-runs/t1only/prior.safetensors} set images
  python "$(dirname "$0")/never_seen.py" --data "$DATA" --out "$OUT"
  for set in "$T1" "$T2" "$OUT/abdomen.npz" "$OUT/phantom.npz"; do
    images=$([[ $set == "$OUT"/* ]] && echo 1 || echo 4)
    evaluate --data "$set" --methods "sense,tv,pnp-admm:samples=0,pnp-admm:samples=0,prior=$weights" --masks gaussian-1d --r 4,8 --images "$images" --size 160 \
      --out "$OUT/shift_$(basename "$set" .npz)"
  done
}

# Fig. 8 of paper 5 and the calibration: the standard deviation against R and against the error
spread() {
  evaluate --data "$T1" --methods pnp-admm,dds,daps:samples=4 --masks gaussian-1d,gaussian-2d --r 2,4,8,12 --images 2 --size 128 \
    --out "$OUT/spread"
}

# from one coil to many, from R = 1 to 12, with much noise and none: whether the default holds without tuning
robust() {
  local coils
  for coils in 1 4 32; do
    evaluate --data "$T1" --methods sense,tv,pnp-admm,dds:samples=4 --coils $coils --masks uniform-1d,gaussian-2d --r 1,4,12 \
      --snr 10,none --images 1 --size 96 --out "$OUT/robust_$coils"
  done
}

# paper 3: what the settings of `vae` are chosen by, on training images
vae_choice() {
  local methods=vae:prior=vae-128,latents=joint,vae:prior=vae-128,latents=joint,lam=4 value
  for value in 1 4; do methods+=,vae:prior=vae-128,mu=$value; done
  evaluate --data "$DATA/train/axial_t1_192.npz" --methods "$methods" --coils 1 --phase 0 --size 128 --images 2 \
    --masks radial --spokes 5,25 --noise 0.0125,0.05 --out "$OUT/vae_choice"
}

# paper 3: the VAE's covariances and the supervised methods over spokes and noise (24 slices take half an hour)
vae() {
  evaluate --data "$T1" --tune-on "$DATA/train/axial_t1_192.npz" --tune-images 2 --coils 1 --phase 0 --size 128 --images "${IMAGES:-50}" \
    --masks radial --spokes 5,25,45,125 --noise 0.0125,0.05 --out "$OUT/vae" \
    --methods least-squares,tv,vae:prior=vae-128,mu=4,vae:prior=vae-128-diagonal,mu=4,vae:prior=vae-128-identity,mu=4 \
    --methods pnp-admm,varnet,unet
}

# paper 3: the same methods on horizontal lines, which varnet and unet were not trained for
vae_horizontal() {
  evaluate --data "$T1" --tune-on "$DATA/train/axial_t1_192.npz" --tune-images 2 --coils 1 --phase 0 --size 128 --images "${IMAGES:-8}" \
    --masks horizontal --probability 0.1,0.2,0.4 --noise 0.0125,0.05 --out "$OUT/vae_horizontal" \
    --methods least-squares,tv,vae:prior=vae-128,mu=4,vae:prior=vae-128-diagonal,mu=4,vae:prior=vae-128-identity,mu=4 \
    --methods pnp-admm,varnet,unet
}

# paper 3: the generator methods beside them, on fewer slices: they are slow
vae_search() {
  evaluate --data "$T1" --coils 1 --phase 0 --size 128 --images "${IMAGES:-4}" --masks radial --spokes 5,25,45,125 --noise 0.0125,0.05 \
    --out "$OUT/vae_search" --methods vae:prior=vae-128,mu=4,range:prior=vae-128,narnhofer:prior=vae-128
}

for part in "${@:-choice choice_samplers choice_pnp calibrate choice_slow default recorded langevin score_mri magnitude shift spread robust vae_choice vae vae_horizontal vae_search}"; do
  for name in $part; do "$name"; done
done
