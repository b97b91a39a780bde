//! Weighted prompts against what `scripts/golden/prompts.py` recorded, and against any text at all.

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;

use super::syntax::{Span, parse};
use super::*;
use crate::golden::{self, assert_near};
use crate::ops::Place;

/// The most by which a hidden state may differ from the recorded one.
const BAR: f32 = 1e-4;
/// Every so many channels of the hidden states were kept.
const THINNED: usize = 4;

struct Texts {
    tokenizers: [Tokenizer; 2],
    encoders: [Clip; 2],
}

impl Texts {
    fn load(folder: &std::path::Path) -> Self {
        let place = Place::new(&Device::Cpu, DType::F32);
        let clip = |part: &str, projects| Clip::load(&folder.join(part), projects, &place);
        let (first, _) = clip("text_encoder", false).unwrap();
        let (second, _) = clip("text_encoder_2", true).unwrap();
        let tokenizer = |part: &str| Tokenizer::read(&folder.join(part), 77).unwrap();
        Self {
            tokenizers: [tokenizer("tokenizer"), tokenizer("tokenizer_2")],
            encoders: [first, second],
        }
    }

    fn read(&self, text: &str, syntax: PromptSyntax) -> Result<Prompt, BeginError> {
        read(&self.tokenizers, "prompt", text, syntax)
    }

    fn weighted(&self, text: &str) -> Prompt {
        self.read(text, PromptSyntax::Weighted).unwrap()
    }
}

fn demo() -> Texts {
    Texts::load(&golden::demo())
}

fn models() -> [(&'static str, Texts); 2] {
    let mini = golden::folder().join("mini");
    [("demo", demo()), ("mini", Texts::load(&mini))]
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Text and weight of each span; a break is `BREAK`.
fn spans(text: &str) -> Vec<(String, f32)> {
    let told = |span| match span {
        Span::Text { text, weight } => (text, weight),
        Span::Break => ("BREAK".to_owned(), 0.0),
    };
    parse(text).unwrap().into_iter().map(told).collect()
}

fn span(text: &str, weight: f32) -> (String, f32) {
    (text.to_owned(), weight)
}

#[test]
fn chunks_and_weights_are_those_that_were_recorded() {
    for (name, texts) in models() {
        let recorded = golden::read(&format!("prompts_{name}"));
        assert!(recorded.cases.len() > 20);
        for (index, text) in recorded.cases.iter().enumerate() {
            let text = text.as_str().unwrap();
            let prompt = texts.weighted(text);
            for which in 0..2 {
                let ids = recorded.get(&format!("{index}.ids.{which}"));
                let ours: Vec<Vec<i64>> = (prompt.chunks.iter())
                    .map(|chunk| chunk[which].ids.iter().map(|id| i64::from(*id)).collect())
                    .collect();
                assert_eq!(ours, ids.to_vec2::<i64>().unwrap(), "{text:?}");
                let weights: Vec<f32> = (prompt.chunks.iter())
                    .flat_map(|chunk| chunk[which].weights.clone())
                    .collect();
                let expected = recorded.values(&format!("{index}.weights.{which}"));
                assert_near("weights", &weights, &expected, 1e-6);
            }
        }
    }
}

#[test]
fn weighted_hidden_states_agree_with_transformers() {
    for (name, texts) in models() {
        let recorded = golden::read(&format!("prompts_{name}"));
        for (index, text) in recorded.cases.iter().enumerate() {
            let prompt = texts.weighted(text.as_str().unwrap());
            let (hidden, pooled) = encode(&texts.encoders, &prompt).unwrap();
            assert_eq!(hidden.dim(0).unwrap(), prompt.chunks() * 77);
            let channels: Vec<u32> = (0..hidden.dim(1).unwrap() as u32)
                .step_by(THINNED)
                .collect();
            let channels = Tensor::new(channels, &Device::Cpu).unwrap();
            let hidden = hidden.index_select(&channels, 1).unwrap();
            let expected = recorded.values(&format!("{index}.hidden"));
            assert_near("hidden", &values(&hidden), &expected, BAR);
            let expected = recorded.values(&format!("{index}.pooled"));
            assert_near("pooled", &values(&pooled), &expected, BAR);
        }
    }
}

#[test]
fn a_short_prompt_without_syntax_gives_the_same_bits_either_way() {
    for (_, texts) in models() {
        for text in [
            "",
            "a 3d cat on a blue background",
            "  Rocket,   flat STYLE!!  ",
            "une pêche mûre — 熊猫 🐼 e\u{301}",
            "a <|endoftext|> inside",
        ] {
            let [plain, weighted] =
                PromptSyntax::ALL.map(|syntax| texts.read(text, syntax).unwrap());
            assert_eq!(plain, weighted);
            let [plain, weighted] =
                [plain, weighted].map(|prompt| encode(&texts.encoders, &prompt).unwrap());
            assert_eq!(values(&plain.0), values(&weighted.0));
            assert_eq!(values(&plain.1), values(&weighted.1));
        }
    }
}

#[test]
fn a_plain_prompt_is_cut_where_the_encoders_end_and_its_brackets_are_words() {
    let texts = demo();
    let long = "panda ".repeat(500);
    assert_eq!(texts.read(&long, PromptSyntax::Plain).unwrap().chunks(), 1);
    let read = |syntax| texts.read("a (cat:1.3)", syntax).unwrap();
    let plain = read(PromptSyntax::Plain);
    assert!(!plain.chunks[0][0].is_weighted());
    assert_ne!(plain, read(PromptSyntax::Weighted));
}

#[test]
fn brackets_weigh_and_nest() {
    let third = (1.1_f64 * 1.1 * 1.1) as f32;
    assert_eq!(
        spans("a (b) [c] (d:1.3) e"),
        [
            span("a ", 1.0),
            span("b", 1.1),
            span(" ", 1.0),
            span("c", (1.0 / 1.1_f64) as f32),
            span(" ", 1.0),
            span("d", 1.3),
            span(" e", 1.0),
        ]
    );
    assert_eq!(spans("(((a)))"), [span("a", third)]);
    assert_eq!(spans("((a:2) b:1.5)"), [span("a", 3.0), span(" b", 1.5)]);
    assert_eq!(spans("([a])"), [span("a", 1.0)]);
    assert_eq!(spans("a (b:1.0) c"), [span("a b c", 1.0)]);
}

#[test]
fn what_is_no_syntax_stands_for_itself() {
    assert_eq!(spans(r"\(a\) \[b\] \\"), [span(r"(a) [b] \", 1.0)]);
    assert_eq!(spans(r"a\b\"), [span(r"a\b\", 1.0)]);
    assert_eq!(spans("a) b] c:1.3)"), [span("a) b] c:1.3)", 1.0)]);
    assert_eq!(spans("at 10:30"), [span("at 10:30", 1.0)]);
    assert_eq!(spans("(a:b)"), [span("a:b", 1.1)]);
    assert_eq!(spans("(a:inf)(b:1e3)"), [span("a:infb:1e3", 1.1)]);
    assert_eq!(spans("(a:1.2.3)"), [span("a:1.2.3", 1.1)]);
    assert_eq!(spans("()[](:5)"), []);
}

#[test]
fn a_bracket_that_is_never_closed_goes_on_to_the_end() {
    assert_eq!(spans("a (b c"), [span("a ", 1.0), span("b c", 1.1)]);
    assert_eq!(spans("(a:1.3"), [span("a:1.3", 1.1)]);
}

#[test]
fn break_is_a_word_and_works_inside_brackets() {
    assert_eq!(
        spans("a BREAK(b BREAK c:2)BREAKFAST aBREAK"),
        [
            span("a ", 1.0),
            span("BREAK", 0.0),
            span("b ", 2.0),
            span("BREAK", 0.0),
            span(" c", 2.0),
            span("BREAKFAST aBREAK", 1.0),
        ]
    );
    let texts = demo();
    assert_eq!(texts.weighted("cat BREAK dog").chunks(), 2);
    assert_eq!(texts.weighted("BREAK dog BREAK").chunks(), 2);
}

#[test]
fn a_prompt_beyond_a_limit_is_refused_by_field_and_limit() {
    let texts = demo();
    let refused = |text: &str| match texts.read(text, PromptSyntax::Weighted) {
        Err(BeginError::Parameter {
            field,
            value,
            reason,
        }) => format!("{field} is {value}: {reason}"),
        other => panic!("{other:?}"),
    };
    let longest = "cat ".repeat(MAX_CHUNKS * 75);
    assert_eq!(texts.weighted(&longest).chunks(), MAX_CHUNKS);
    assert!(refused(&format!("{longest} cat")).contains("longer than 8 chunks of 75 tokens"));
    assert!(refused(&"BREAK ".repeat(9)).contains("8 chunks"));
    let deepest = "(".repeat(24) + &"[".repeat(8);
    assert_eq!(texts.weighted(&format!("{deepest}a")).chunks(), 1);
    assert!(refused(&format!("{deepest}(a")).contains("nested deeper than 32"));
    assert_eq!(texts.weighted("(a:10) (b:0)").chunks(), 1);
    for text in ["(a:10.1)", "(a:-1)", "at (10:30)", "((((a:3):3):3):3)"] {
        assert!(refused(text).contains("expected 0 to 10"), "{text}");
    }
    let digits = format!("(a:{})", "9".repeat(400));
    assert!(refused(&digits).contains("expected 0 to 10"));
}

#[test]
fn a_padded_prompt_ends_in_empty_chunks_of_each_encoders_own_padding() {
    let texts = demo();
    let prompt = texts.weighted("(cat:1.2)");
    let padded = prompt.clone().padded(3, &texts.tokenizers);
    assert_eq!((padded.chunks(), prompt.chunks()), (3, 1));
    assert_eq!(padded.chunks[0], prompt.chunks[0]);
    assert_ne!(padded.digest(), prompt.digest());
    let empty = texts.weighted("").chunks.remove(0);
    assert_eq!(padded.chunks[1..], [empty.clone(), empty.clone()]);
    let [first, second] = empty;
    assert_eq!((first.ids[76], second.ids[76]), (1559, 0));
    // Fewer than there are is not a cut.
    assert_eq!(padded.clone().padded(1, &texts.tokenizers), padded);
    let (hidden, pooled) = encode(&texts.encoders, &padded).unwrap();
    let (alone, alone_pooled) = encode(&texts.encoders, &prompt).unwrap();
    assert_eq!(hidden.dims2().unwrap(), (3 * 77, 192));
    assert_eq!(values(&hidden.narrow(0, 0, 77).unwrap()), values(&alone));
    assert_eq!(values(&pooled), values(&alone_pooled));
}

#[test]
fn prompts_that_differ_in_a_weight_have_different_digests() {
    let texts = demo();
    let digest = |text: &str| texts.weighted(text).digest();
    assert_eq!(digest("a (cat)"), digest("a (cat:1.1)"));
    assert_ne!(digest("a (cat)"), digest("a cat"));
    assert_ne!(digest("a (cat)"), digest("a (dog)"));
}

#[test]
fn a_stretch_longer_than_a_chunk_is_cut_where_it_must_be() {
    let texts = demo();
    // Without a space: some ten tokens a repetition, and none of them is a word.
    let prompt = texts.weighted(&"熊猫🐼".repeat(40));
    assert!(prompt.chunks() > 4);
    let words: usize = (prompt.chunks.iter())
        .map(|[first, _]| first.ids.iter().filter(|id| **id < 1558).count())
        .sum();
    let whole = texts.tokenizers[0].pieces(&"熊猫🐼".repeat(40)).unwrap();
    assert_eq!(words, whole.len());
}

#[test]
fn syntaxes_read_back_as_written() {
    for syntax in PromptSyntax::ALL {
        assert_eq!(syntax.to_string().parse::<PromptSyntax>().unwrap(), syntax);
        let json = serde_json::to_value(syntax).unwrap();
        assert_eq!(json, serde_json::json!(syntax.to_string()));
    }
    let error = "compel".parse::<PromptSyntax>().unwrap_err().to_string();
    assert!(error.contains("compel") && error.contains("weighted"));
}

/// Texts that are mostly syntax.
fn prompts() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        8 => proptest::sample::select(vec![
            "(", ")", "[", "]", ":", "\\", ":1.3)", ":0.5)", ": 2 )", ":99)", "BREAK", " BREAK ", ",", ", ", " ",
            "cat", "dog ", "\n", "1", ".", "-", "<|endoftext|>", "!", "!!",
        ])
        .prop_map(str::to_owned),
        2 => any::<char>().prop_map(String::from),
        1 => "\\PC{0,8}",
    ];
    proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn every_text_can_be_parsed_or_is_beyond_a_limit(text in prompts()) {
        match parse(&text) {
            Err(Limit::Depth | Limit::Chunks { .. }) => prop_assert!(text.matches(['(', '[']).count() > MAX_DEPTH),
            Err(Limit::Weight(weight)) => prop_assert!(!(0.0..=10.0).contains(&weight)),
            Ok(spans) => for pair in spans.windows(2) {
                if let [Span::Text { weight: a, .. }, Span::Text { weight: b, .. }] = pair {
                    prop_assert!(a != b);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_text_without_syntax_is_one_span(text in "[^()\\[\\]\\\\B]{1,60}") {
        prop_assert_eq!(spans(&text), [span(&text, 1.0)]);
    }

    #[test]
    fn every_chunk_is_as_long_as_the_encoder_and_both_have_the_same_number(text in prompts(), times in 1_usize..40) {
        thread_local!(static TEXTS: Texts = demo());
        TEXTS.with(|texts| {
            match texts.read(&text.repeat(times), PromptSyntax::Weighted) {
                Err(error) => prop_assert!(matches!(error, BeginError::Parameter { field: "prompt", .. }), "{error}"),
                Ok(prompt) => {
                    prop_assert!((1..=MAX_CHUNKS).contains(&prompt.chunks()));
                    for chunk in prompt.chunks.iter().flatten() {
                        prop_assert_eq!((chunk.ids.len(), chunk.weights.len()), (77, 77));
                        prop_assert_eq!((chunk.ids[0], chunk.weights[0]), (1558, 1.0));
                        prop_assert!(chunk.ids.contains(&1559));
                    }
                }
            }
            Ok(())
        })?;
    }
}
