"""Asks whether independent models of few noise levels converge faster than one joint model of many, and in which unit.

Claims ([TS], arXiv 2508.14413): one independent model per level of some 32, combined in one chain, gives good samples and
converges 4-6 times faster. Here K experts own blocks of the 32 levels (K = 1: joint, with a time input; K = 32: complete
disentanglement, without), predict noise or v, and see 4 or 32 samples per level and step. For each task: few levels
against many; every K against the joint model that predicts the same; and the contest against the joint noise-prediction
model on 1000 linear-beta levels. The ladder is the one with the least exact W2 on the data's Gaussian twin; learning
rates and the setting that competes are chosen on seed 100 and reported on seeds 0, 1, 2. Speed-up = cost of the baseline
/ cost of the setting at its first crossing of the baseline's final error, by the best of the baseline's chains (DDIM on
all 1000 levels, DDIM or DPM-Solver++(2M) on 32 of them), in sequential steps, sample gradients and seconds of this
machine (its share of the program that trains six models at once). The error: root mean square distance to where the exact
flow takes the same noise; squared sliced W2 from the held-out samples where no exact score is known.

    python -m experiments.disentangled              # a mixture, a Gaussian, digits
    python -m experiments.disentangled --quick      # the Gaussian, less of everything

Takes 521 s on two cores. Obtained (median [least, largest] of three fresh seeds; steps / samples):

- gaussian: K = 2, v, spectral ladder, 2M: 7.1 [4.8, 7.1] times fewer steps and samples. The joint v model on 1000 levels, same
  sampler: 4.2 [3.0, 5.3]; on the 32: 4.9 [4.1, 7.3]. So most of it is the parameterisation. With noise-prediction neither
  32 levels nor 2M alone reach the baseline's best.
- mixture: the joint model (K = 1), v, 32 samples per state: 7.4 [5.3, 8.1] times fewer steps, .93 [.66, 1.0] of the samples. At
  4 samples per state no K beats K = 1 in any unit (K = 32 ends at 1.6 times its error): clusters are learned once by a joint
  model, 32 times by 32 experts. The goal of 4 times fewer samples is not met.
- digits-32: the setting chosen (K = 1, v, DDIM) is 17 and 9.1 times faster in both units and never arrives on the third seed:
  it starts to overfit the 1257 images after 500 steps. The joint v model on 1000 levels: 9.7, 8.6, never.
- the claim itself, K experts against the joint model of the same 32 levels, 4 samples per level and step: with noise-prediction
  4.2, 4.1, 2.7 times fewer steps and samples at K = 8, 16, 32 on the Gaussian, 4.3, 4.0, 4.0 on digits, none on the mixture;
  with v-prediction at most 1.5 (K = 2), and a third at K = 32 on digits.
- 32 against 1000 levels in training makes no difference (.0602 and .0625 gaussian, .2715 and .2730 mixture, .0157 and .0152
  digits; noise, 2M).
"""
