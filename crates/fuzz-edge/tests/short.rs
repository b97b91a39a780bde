//! A short run, for every change.

/// Inputs for each target.
const INPUTS: u64 = 20_000;

#[test]
fn nothing_that_a_caller_sends_makes_a_reader_panic_or_take_what_is_beyond_its_limits() {
    let targets = fuzz_edge::targets();
    assert!(targets.len() >= 12, "only {}", targets.len());
    for target in targets {
        let count = target.run(INPUTS, 7, |_| ());
        println!(
            "{:<16} {} of {} taken",
            target.name, count.taken, count.inputs
        );
        // Where all were refused, nothing behind the first check was looked at.
        assert!(count.taken > 0, "{} took none", target.name);
    }
}
