def define_flags() -> None:
    shared.define_common_flags("paper_figures")
    shared.define_integer("draws", 1000, "Draws of the estimated variances behind each share.", low=1)
    shared.define_integer("seed", 0, "Seed of the first draw, the one drawn as curves.", low=0)


def main() -> None:
    begin = time.perf_counter()
    config = Config(draws=min(FLAGS.draws, 50) if FLAGS.quick else FLAGS.draws, seed=FLAGS.seed)
    workdir = shared.prepare_workdir()
    panels = run(config)
    print(table(panels))
    records.write_records(workdir, make_records(panels))
    fields = ("variances", "estimated_variances", "times", "noise_var", "w2_squared", "best_times", "thresholds")
    records.write_curves(workdir, {f"{p.name}_{f}": getattr(p, f) for p in panels.values() for f in fields})
    for name, caption in captions(panels).items():
        of_figure = [p for p in panels.values() if p.name.startswith(name.replace("ure_", ""))]
        plotting.save(draw(of_figure, caption), workdir / f"{name}.png")
    seconds = time.perf_counter() - begin
    records.write_metadata(workdir, seconds=seconds, data_digest=None)
    print(f"{seconds:.1f} s; results in {workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
