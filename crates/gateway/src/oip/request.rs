//! From a batch of tensors to our requests, one a picture.

mod inputs;

use contract::v1::OutputFormat;
use contract::words::{FORMATS, all, meaning};
use contract::{Failure, v1, validate};

use super::keys;
use super::model::{IMAGE, INPUTS, OUTPUTS};
use super::tensor::{Tensor, invalid};
use crate::json::shorten;
use crate::problem::by_name;

use inputs::Inputs;

/// The parameter of a request that says how pictures are handed over.
pub(super) const IMAGE_FORMAT: &str = "image_format";
/// Its word for pixels instead of files.
const RAW: &str = "raw";

/// A request, whichever wire it came over.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) model: String,
    /// Empty: whichever the platform chooses.
    pub(super) version: String,
    /// The caller's own, repeated in the answer.
    pub(super) id: String,
    pub(super) inputs: Vec<Tensor>,
    /// Names; empty for all.
    pub(super) outputs: Vec<String>,
    /// The parameter [`IMAGE_FORMAT`].
    pub(super) image_format: Option<String>,
}

/// What to do for a request.
#[derive(Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) tasks: Vec<v1::SubmitTask>,
    /// Pixels, not files.
    pub(super) raw: bool,
    /// Which of [`OUTPUTS`], in the order asked for.
    pub(super) outputs: Vec<&'static str>,
}

/// Plans a request; its failures name the protocol's tensors and parameters.
pub(super) fn plan(asked: &Asked, idempotency_key: &str) -> Result<Plan, Failure> {
    let inputs = Inputs::new(&asked.inputs)?;
    let (raw, format) = image_format(asked.image_format.as_deref())?;
    let mut tasks = Vec::with_capacity(inputs.batch);
    for i in 0..inputs.batch {
        let mut task = inputs.task(i)?;
        task.model.clone_from(&asked.model);
        task.output_format = format.into();
        task.idempotency_key = keys::of_picture(idempotency_key, i);
        validate(&task).map_err(renamed)?;
        tasks.push(task);
    }
    let size = |task: &v1::SubmitTask| (task.width, task.height);
    if raw && tasks.iter().any(|task| size(task) != size(&tasks[0])) {
        let message = "WIDTH and HEIGHT must be the same for the whole batch with image_format raw: one tensor holds all";
        return Err(Failure::invalid("WIDTH", message));
    }
    let outputs = outputs(&asked.outputs)?;
    Ok(Plan {
        tasks,
        raw,
        outputs,
    })
}

/// A failure by the names of this protocol.
pub(super) fn renamed(failure: Failure) -> Failure {
    let name = match failure.field.as_deref() {
        // There is one for each prompt.
        Some("tasks") => Some("PROMPT".to_owned()),
        field => field.map(str::to_ascii_uppercase),
    };
    let known = name.filter(|name| INPUTS.iter().any(|input| input.name == name));
    match known {
        Some(name) => by_name(failure, &name),
        None => failure,
    }
}

fn image_format(given: Option<&str>) -> Result<(bool, OutputFormat), Failure> {
    match given {
        None => Ok((false, OutputFormat::Unspecified)),
        // Drawn into a file without loss, and taken out of it again.
        Some(RAW) => Ok((true, OutputFormat::Png)),
        Some(text) => {
            let format = meaning(FORMATS, text).ok_or_else(|| {
                let (words, shown) = (all(FORMATS), shorten(text));
                let message = format!(
                    "the parameter {IMAGE_FORMAT} must be one of {words}, {RAW}, not {shown:?}"
                );
                Failure::invalid(IMAGE_FORMAT, message)
            })?;
            Ok((false, format))
        }
    }
}

fn outputs(asked: &[String]) -> Result<Vec<&'static str>, Failure> {
    if asked.is_empty() {
        return Ok(OUTPUTS.iter().map(|output| output.name).collect());
    }
    let mut found = Vec::new();
    for name in asked {
        let known = OUTPUTS.iter().find(|output| output.name == name);
        let known = known.map(|output| output.name).ok_or_else(|| {
            let (shown, names) = (shorten(name), names(OUTPUTS));
            invalid(
                "outputs",
                format!("there is no output {shown:?}; there are {names}"),
            )
        })?;
        if found.contains(&known) {
            let message = format!("the output {known} is asked for more than once");
            return Err(invalid("outputs", message));
        }
        found.push(known);
    }
    if !found.contains(&IMAGE) {
        let message = format!("outputs must have {IMAGE}: that is what is drawn");
        return Err(invalid("outputs", message));
    }
    Ok(found)
}

fn names(tensors: &[super::model::Described]) -> String {
    let names: Vec<_> = tensors.iter().map(|tensor| tensor.name).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use contract::limits::MAX_IMAGES;
    use proptest::prelude::*;

    use super::super::tensor::Values;
    use super::*;

    fn tensor(name: &str, values: Values) -> Tensor {
        let count = match &values {
            Values::Bytes(values) => values.len(),
            Values::Whole(values) => values.len(),
            Values::Real(values) => values.len(),
        };
        let (name, shape) = (name.to_owned(), vec![count as i64]);
        Tensor {
            name,
            shape,
            values,
        }
    }

    fn texts(name: &str, texts: &[&'static str]) -> Tensor {
        let texts = texts.iter().map(|text| Bytes::from_static(text.as_bytes()));
        tensor(name, Values::Bytes(texts.collect()))
    }

    fn asked(inputs: Vec<Tensor>) -> Asked {
        let model = "m".to_owned();
        Asked {
            model,
            inputs,
            ..Default::default()
        }
    }

    fn field(inputs: Vec<Tensor>) -> String {
        plan(&asked(inputs), "").unwrap_err().field.unwrap()
    }

    #[test]
    fn a_batch_is_a_task_a_picture_with_its_own_values_or_those_for_all() {
        let inputs = vec![
            texts("PROMPT", &["a cat", "a dog"]),
            tensor("SEED", Values::Whole(vec![7, i128::from(u64::MAX)])),
            tensor("STEPS", Values::Whole(vec![4])),
            tensor("GUIDANCE_SCALE", Values::Real(vec![2.5])),
            texts("SCHEDULER", &["euler"]),
        ];
        let plan = plan(&asked(inputs), "k").unwrap();
        let [cat, dog] = &plan.tasks[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(
            (cat.prompt.as_str(), dog.prompt.as_str()),
            ("a cat", "a dog")
        );
        assert_eq!((cat.seed, dog.seed), (Some(7), Some(u64::MAX)));
        assert_eq!((cat.steps, dog.steps), (4, 4));
        assert_eq!((cat.images, cat.guidance_scale), (1, Some(2.5)));
        assert_eq!(dog.scheduler(), v1::Scheduler::Euler);
        assert_eq!(cat.idempotency_key, "k");
        assert_eq!(dog.idempotency_key, keys::of_picture("k", 1));
        assert_eq!(plan.outputs, ["IMAGE", "SEED", "TASK_ID"]);
    }

    #[test]
    fn a_batch_may_have_as_long_a_key_as_a_picture_alone() {
        let long = "k".repeat(contract::limits::MAX_IDEMPOTENCY_KEY_BYTES);
        let batch = asked(vec![texts("PROMPT", &["p"; MAX_IMAGES as usize])]);
        assert_eq!(
            plan(&batch, &long).unwrap().tasks.len(),
            MAX_IMAGES as usize
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_tensors_name() {
        let prompt = || texts("PROMPT", &["p"]);
        assert_eq!(field(vec![]), "PROMPT");
        assert_eq!(field(vec![texts("PROMPT", &[" "])]), "PROMPT");
        assert_eq!(field(vec![texts("PROMPT", &["p"; 11])]), "PROMPT");
        assert_eq!(field(vec![prompt(), prompt()]), "PROMPT");
        assert_eq!(field(vec![prompt(), texts("PROMTP", &["p"])]), "PROMTP");
        let seed = |values| vec![prompt(), tensor("SEED", values)];
        assert_eq!(field(seed(Values::Whole(vec![1, 2]))), "SEED");
        assert_eq!(field(seed(Values::Whole(vec![-1]))), "SEED");
        assert_eq!(field(seed(Values::Real(vec![1.0]))), "SEED");
        assert_eq!(
            field(vec![prompt(), texts("SCHEDULER", &["plms"])]),
            "SCHEDULER"
        );
        let scale = tensor("GUIDANCE_SCALE", Values::Real(vec![f64::NAN]));
        assert_eq!(field(vec![prompt(), scale]), "GUIDANCE_SCALE");
    }

    #[test]
    fn what_the_platform_complains_of_is_told_by_the_tensors_name() {
        let prompt = || texts("PROMPT", &["p"]);
        let scale = tensor("GUIDANCE_SCALE", Values::Real(vec![-1.0]));
        let share = tensor("GUIDANCE_RESCALE", Values::Real(vec![2.0]));
        for input in [scale, share] {
            let name = input.name.clone();
            let told = plan(&asked(vec![prompt(), input]), "").unwrap_err();
            let begin = format!("{name} must be ");
            assert!(told.message.starts_with(&begin), "{told}");
        }
        for (field, message, told) in [
            ("width", "width must be 64", "WIDTH must be 64"),
            ("quality", "no HD for you", "QUALITY: no HD for you"),
            ("user", "user must be short", "user must be short"),
            ("tasks", "tasks: send at most 5", "PROMPT: send at most 5"),
        ] {
            assert_eq!(renamed(Failure::invalid(field, message)).message, told);
        }
    }

    #[test]
    fn a_task_may_be_given_a_time_to_begin_within_as_in_our_own_dialect() {
        let within = |seconds| {
            let seconds = tensor("EXPIRES_AFTER_SECONDS", Values::Whole(vec![seconds]));
            vec![texts("PROMPT", &["p", "q"]), seconds]
        };
        let plan = plan(&asked(within(60)), "").unwrap();
        assert!(plan.tasks.iter().all(|t| t.expires_after_seconds == 60));
        assert_eq!(field(within(604_801)), "EXPIRES_AFTER_SECONDS");
        assert_eq!(field(within(-1)), "EXPIRES_AFTER_SECONDS");
    }

    #[test]
    fn each_picture_of_a_batch_may_ask_for_a_label_to_be_seen() {
        let labels = |labels: &[i128]| {
            let labels = tensor("VISIBLE_LABEL", Values::Whole(labels.to_vec()));
            vec![texts("PROMPT", &["p", "q"]), labels]
        };
        let plan = plan(&asked(labels(&[0, 1])), "").unwrap();
        let asked: Vec<_> = plan.tasks.iter().map(|task| task.visible_label).collect();
        assert_eq!(asked, [false, true]);
        assert_eq!(field(labels(&[2])), "VISIBLE_LABEL");
    }

    #[test]
    fn pixels_need_one_size_for_the_whole_batch() {
        let mut request = asked(vec![
            texts("PROMPT", &["a", "b"]),
            tensor("WIDTH", Values::Whole(vec![64, 128])),
        ]);
        assert!(plan(&request, "").is_ok());
        request.image_format = Some("raw".to_owned());
        let failure = plan(&request, "").unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("WIDTH"));
        request.image_format = Some("bmp".to_owned());
        let failure = plan(&request, "").unwrap_err();
        assert!(
            failure.message.contains("png, jpeg, webp, raw"),
            "{failure}"
        );
    }

    #[test]
    fn a_number_out_of_range_is_told_with_the_limit_that_holds() {
        let told = |name: &str, number: i128| {
            let number = tensor(name, Values::Whole(vec![number]));
            let request = asked(vec![texts("PROMPT", &["p"]), number]);
            plan(&request, "").unwrap_err().message
        };
        let of_32_bits = i128::from(u32::MAX) + 1;
        assert_eq!(
            told("STEPS", of_32_bits),
            "STEPS must be 0 to the model's limit, not 4294967296"
        );
        assert_eq!(
            told("EXPIRES_AFTER_SECONDS", 604_801),
            "EXPIRES_AFTER_SECONDS must be 0 to 604800, not 604801"
        );
        assert_eq!(
            told("SEED", -1),
            "SEED must be 0 to 18446744073709551615, not -1"
        );
    }

    #[test]
    fn outputs_are_those_asked_for_and_a_picture_is_always_among_them() {
        let names = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
            outputs(&names).ok()
        };
        assert_eq!(names(&["SEED", "IMAGE"]), Some(vec!["SEED", "IMAGE"]));
        for bad in [&["SEED"][..], &["IMAGE", "IMAGE"], &["LATENTS"]] {
            assert_eq!(names(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_tensors_make_the_planner_panic(
            name in proptest::sample::select(vec!["PROMPT", "SEED", "WIDTH", "GUIDANCE_SCALE", "SCHEDULER", "X"]),
            shape in proptest::collection::vec(any::<i64>(), 0..4),
            whole in proptest::collection::vec(any::<i128>(), 0..4),
            bytes in proptest::collection::vec(any::<u8>(), 0..9),
            which in 0..3,
        ) {
            let values = match which {
                0 => Values::Whole(whole),
                1 => Values::Real(whole.iter().map(|n| *n as f64).collect()),
                _ => Values::Bytes(vec![Bytes::from(bytes)]),
            };
            let odd = Tensor { name: name.to_owned(), shape: shape.clone(), values: values.clone() };
            let _ = plan(&asked(vec![texts("PROMPT", &["p"]), odd.clone()]), "");
            let fitting = tensor(name, values);
            let _ = plan(&asked(vec![texts("PROMPT", &["p"]), fitting]), "k");
            let _ = plan(&asked(vec![odd]), "");
        }
    }
}
