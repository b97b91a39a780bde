//! What can be typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use contract::v1::Scheduler;
use contract::words::{SCHEDULERS, meaning};

use crate::error::CliError;
use crate::values::{
    Limit, address, day_limit, pictures, requests, seed, share, size, steps, tasks_limit, time,
    weight,
};
use crate::{
    audit, client, dead, demo, doctor, examples, generate, inspect, keys, models, policies, up,
    watch,
};

/// Where data is kept unless somebody says otherwise.
const DATA: &str = ".inkstone";

/// Text to image, from prompt to picture: `inkstone up` runs the platform, the other commands call one.
#[derive(Debug, Parser)]
#[command(name = "inkstone", version, after_help = examples::INKSTONE)]
pub(crate) struct Cli {
    /// The folder where `inkstone up` keeps its data, and where other commands find a running platform.
    #[arg(long, global = true, env = "INKSTONE_DATA", default_value = DATA, value_name = "FOLDER")]
    data: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole platform in this process until Ctrl-C.
    #[command(after_help = examples::UP)]
    Up(UpArgs),
    /// Run the whole platform, draw one picture, and stop. Its data is in the folder demo of the data folder.
    Demo(DemoArgs),
    /// Draw a picture with a running platform.
    #[command(after_help = examples::GENERATE)]
    Generate(GenerateArgs),
    /// Follow a task until it ends.
    Watch(WatchArgs),
    /// Cancel a task. One that has ended before stays as it is, and the exit code is 6.
    Cancel {
        /// The task's id, as `generate` says it.
        task: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Create, list and revoke keys.
    #[command(after_help = examples::KEYS)]
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
        #[command(flatten)]
        auth: AuthArgs,
        #[command(flatten)]
        tls: TlsArgs,
    },
    /// List, change and remove policies: what keys may do, by their prefix.
    #[command(after_help = examples::POLICIES)]
    Policies {
        #[command(subcommand)]
        command: PoliciesCommand,
        #[command(flatten)]
        auth: AuthArgs,
        #[command(flatten)]
        tls: TlsArgs,
    },
    /// List models, publish versions, shift traffic.
    #[command(after_help = examples::MODELS)]
    Models {
        #[command(subcommand)]
        command: ModelsCommand,
        #[command(flatten)]
        tls: TlsArgs,
    },
    /// List, show and try again what was given up: tasks, submissions over NATS, webhooks.
    #[command(after_help = examples::DEAD)]
    Dead {
        #[command(flatten)]
        args: dead::DeadArgs,
        #[command(flatten)]
        tls: TlsArgs,
    },
    /// Check and read audit files: those of `inkstone up`, or a copy of others. Needs no running platform.
    #[command(after_help = examples::AUDIT)]
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Read the labels in a picture file.
    Inspect {
        /// A PNG, JPEG or WebP file, 64 MiB at most.
        file: PathBuf,
    },
    /// Check that this machine and a running platform have what they need.
    Doctor {
        #[command(flatten)]
        server: ServerArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Where callers reach the platform: 127.0.0.1 is for this machine only, 0.0.0.0 for all who reach it; port 0 is any that is free.
    #[arg(long, value_parser = address, default_value = "127.0.0.1:8080", value_name = "IP:PORT")]
    pub(crate) listen: SocketAddr,
    /// A model folder to publish at start; may be given several times. Default: the demo model of the repository that it is started in;
    /// elsewhere, what was published before.
    #[arg(long = "model", value_name = "FOLDER")]
    pub(crate) models: Vec<PathBuf>,
    /// Flush every write to the disk before it is acknowledged: survives power loss, costs throughput.
    #[arg(long)]
    pub(crate) sync_always: bool,
    /// Where traces go: the gRPC endpoint of an OTLP receiver such as Jaeger, http://127.0.0.1:4317. Default: nowhere.
    #[arg(
        long,
        env = "INKSTONE_OTLP_ENDPOINT",
        default_value = "",
        hide_default_value = true,
        value_name = "URL"
    )]
    pub(crate) otlp_endpoint: String,
    /// What is logged, to the standard error output: error, warn, info, debug or trace, and another level for a part behind a comma
    /// (gpu_worker=debug).
    #[arg(
        long,
        env = "INKSTONE_LOG",
        default_value = "info,async_nats=warn",
        value_name = "FILTER"
    )]
    pub(crate) log: String,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// What to draw.
    #[arg(long, default_value = "a 3d panda on a yellow background")]
    pub(crate) prompt: String,
    /// The folder that the picture goes into; made where it is not there.
    #[arg(long, default_value = "out")]
    pub(crate) folder: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The task's id, as `generate` says it.
    pub(crate) task: String,
    /// How long to wait for a platform that has gone away meanwhile, such as 30s or 5m; 0s: not at all. Default: 1m.
    #[arg(long, value_parser = time, allow_negative_numbers = true)]
    pub(crate) patience: Option<Duration>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Where a running platform is.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// The platform's address. Default: the one that runs on the data folder; with --key, http://127.0.0.1:8080.
    #[arg(long, env = "INKSTONE_URL")]
    pub(crate) url: Option<String>,
    /// A bearer key. Default: the one that `inkstone up` made.
    #[arg(long, env = "INKSTONE_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// The file (PEM) of the CA that issued the certificate of an https:// address. Default: those that this machine trusts.
    #[arg(long, env = "INKSTONE_CA")]
    pub(crate) ca: Option<PathBuf>,
}

/// Where auth itself is: keys are managed there, never through the public port.
#[derive(Debug, Clone, Args)]
pub(crate) struct AuthArgs {
    /// Auth's own address. Default: the one that runs on the data folder.
    #[arg(long, global = true, env = "INKSTONE_AUTH_URL")]
    pub(crate) auth_url: Option<String>,
    /// The file with auth's admin token. Default: the one in the data folder.
    #[arg(long, global = true, env = "INKSTONE_ADMIN_TOKEN_FILE")]
    pub(crate) admin_token_file: Option<PathBuf>,
}

/// How services are reached that ask for certificates.
#[derive(Debug, Clone, Args)]
pub(crate) struct TlsArgs {
    /// The folder with ca.pem, cert.pem and key.pem of operator.inkstone. Default: in the clear.
    #[arg(long, global = true, env = "INKSTONE_TLS_DIR")]
    pub(crate) tls_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// What to draw.
    pub(crate) prompt: String,
    /// The file to write, in a folder that is there; with several pictures, -0, -1, … go before the extension. The extension (png,
    /// jpg, webp) says which format; without one it is PNG.
    #[arg(short, long, default_value = "inkstone.png")]
    pub(crate) output: PathBuf,
    /// What to keep out of the picture.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) negative: String,
    /// Model name or alias, as `inkstone models list` shows them. Default: the platform's.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) model: String,
    /// WIDTHxHEIGHT in pixels, such as 128x128, within the model's limits. Default: the model's.
    #[arg(long, value_parser = size)]
    pub(crate) size: Option<(u32, u32)>,
    /// How many pictures, 1 to 10.
    #[arg(short, long, value_parser = pictures, allow_negative_numbers = true, default_value_t = 1)]
    pub(crate) n: u32,
    /// A whole number: the same seed draws the same picture, on one kind of machine. Default: random.
    #[arg(long, value_parser = seed, allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,
    /// Denoising steps, from 1 to the model's limit: more take longer. Default: the model's.
    #[arg(long, value_parser = steps, allow_negative_numbers = true)]
    pub(crate) steps: Option<u32>,
    /// Guidance scale, from 0 to the model's limit: how closely to keep to the prompt; 1 or less switches guidance off. Default: the model's.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) guidance: Option<f32>,
    /// Sampler. Default: the model's.
    #[arg(long, value_parser = scheduler())]
    pub(crate) scheduler: Option<Scheduler>,
    /// Read the prompts as weighted: (word), (word:1.3), [word], BREAK, and more than 75 tokens.
    #[arg(long)]
    pub(crate) weighted: bool,
    /// How much of the contrast that guidance adds is taken back, 0 to 1. Default: 0.
    #[arg(long, value_parser = share, allow_negative_numbers = true)]
    pub(crate) guidance_rescale: Option<f32>,
    /// Draw a label that people see, "AI生成", into the picture, beside the one in its file.
    #[arg(long)]
    pub(crate) visible_label: bool,
    /// How long to wait for a platform that has gone away meanwhile, such as 30s or 5m; 0s: not at all. Default: 1m.
    #[arg(long, value_parser = time, allow_negative_numbers = true)]
    pub(crate) patience: Option<Duration>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no record was changed, removed, added or moved, and that nothing was lost before it was recorded.
    #[command(after_help = examples::AUDIT)]
    Verify {
        /// The folder with the files, such as a copy of the object store's audit/. Default: objects/audit in the data folder.
        #[arg(long)]
        files: Option<PathBuf>,
        /// The files go on behind this record, SEQUENCE:HASH. Default: they begin with the first record.
        #[arg(long)]
        after: Option<::audit::Head>,
        /// A record that must be among them, SEQUENCE:HASH, such as the end that an earlier check said: without it nobody can tell
        /// whether the last files are missing.
        #[arg(long)]
        head: Option<::audit::Head>,
        /// So many gaps are known and accounted for. With more of them the check fails: what happened in a gap was lost before it was
        /// recorded.
        #[arg(long, default_value_t = 0)]
        known_gaps: usize,
    },
    /// Show what is recorded of a task.
    Show {
        /// The task's id.
        task: String,
        /// The folder with the files, such as a copy of the object store's audit/. Default: objects/audit in the data folder.
        #[arg(long)]
        files: Option<PathBuf>,
        /// The files go on behind this record, SEQUENCE:HASH. Default: they begin with the first record.
        #[arg(long)]
        after: Option<::audit::Head>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key; its secret and bearer are shown once.
    #[command(after_help = examples::KEYS)]
    Create {
        /// Who owns what the key makes: 1 to 40 characters of a-z, 0-9 and -.
        #[arg(long)]
        tenant: String,
        /// What the key may do: the prefix of a policy, such as dev-, test- or prod-; `inkstone policies list` shows them.
        #[arg(long, default_value = "dev-")]
        prefix: String,
        /// What people call the key, 80 bytes at most. Default: nothing.
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// Refuse signature v1, which signs no body.
        #[arg(long)]
        no_signature_v1: bool,
    },
    /// List keys.
    List {
        /// Only this tenant's. Default: all.
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
    },
    /// Show what the webhooks of a key's tasks are verified with. It is the same every time.
    WebhookSecret {
        /// The public half of the key, as `inkstone keys list` shows it.
        app_key: String,
    },
    /// Revoke a key: every service refuses it within a second.
    Revoke {
        /// The public half of the key, as `inkstone keys list` shows it.
        app_key: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoliciesCommand {
    /// List policies.
    List,
    /// Show one policy.
    Show {
        /// The prefix of its keys, such as prod-.
        prefix: String,
    },
    /// Change a policy, or make one. What is not given stays as it is; in force everywhere within a second.
    #[command(after_help = examples::POLICIES)]
    Set(PolicyArgs),
    /// Remove a policy. Keys that fall under it are turned away from then on.
    Remove {
        /// The prefix of its keys, such as prod-.
        prefix: String,
        /// Also where good keys fall under it.
        #[arg(long)]
        even_if_used: bool,
    },
}

/// A policy's fields. A new policy needs models and requests a second.
#[derive(Debug, Default, Args)]
pub(crate) struct PolicyArgs {
    /// The prefix of its keys, such as prod-. A new policy needs --models and --requests-per-second.
    pub(crate) prefix: String,
    /// Model names or aliases, separated by commas; '*' is all.
    #[arg(long, value_delimiter = ',')]
    pub(crate) models: Option<Vec<String>>,
    /// Whether HD quality is allowed: true or false. New: false.
    #[arg(long)]
    pub(crate) hd: Option<bool>,
    /// Requests a second of each key, 1 to 1000000.
    #[arg(long, value_parser = requests, allow_negative_numbers = true)]
    pub(crate) requests_per_second: Option<u32>,
    /// Requests of each key at once after a pause, 1 to 1000000. New: as many as in a second.
    #[arg(long, value_parser = requests, allow_negative_numbers = true)]
    pub(crate) burst: Option<u32>,
    /// Scheduling tier: standard, priority, or another that the orchestrator has lanes for. New: standard.
    #[arg(long)]
    pub(crate) tier: Option<String>,
    /// Tasks of a tenant that may wait for a worker, 1 or more; none: no limit. New: none.
    #[arg(long, value_parser = tasks_limit, allow_negative_numbers = true)]
    pub(crate) tasks_waiting: Option<Limit<u32>>,
    /// Tasks of a tenant that workers have at once, 1 or more; none: no limit. New: none.
    #[arg(long, value_parser = tasks_limit, allow_negative_numbers = true)]
    pub(crate) tasks_running: Option<Limit<u32>>,
    /// Pictures of a tenant in a day (UTC), 1 or more; none: no limit. New: none.
    #[arg(long, value_parser = day_limit, allow_negative_numbers = true)]
    pub(crate) images_per_day: Option<Limit<u64>>,
    /// Pixels times steps of a tenant in a day (UTC), over all pictures, 1 or more; none: no limit. New: none.
    #[arg(long, value_parser = day_limit, allow_negative_numbers = true)]
    pub(crate) pixel_steps_per_day: Option<Limit<u64>>,
    /// The registry's own address, to be warned of models that it does not know. Default: the one that runs on the data folder, where
    /// auth is that one's, too.
    #[arg(long, env = "INKSTONE_REGISTRY_URL")]
    pub(crate) registry_url: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List the models that your key may use.
    List {
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Publish a model folder as a version. The registry reads the folder: it must be on the registry's machine.
    Register {
        /// A folder in diffusers layout with an inkstone.json.
        folder: PathBuf,
        /// The registry's own address. Default: the one that runs on the data folder.
        #[arg(long, env = "INKSTONE_REGISTRY_URL")]
        registry_url: Option<String>,
    },
    /// Share new tasks among versions, such as `1=90 2=10`.
    #[command(after_help = examples::MODELS)]
    Traffic {
        /// The model's name, as `inkstone models list` shows it.
        model: String,
        /// VERSION=WEIGHT, a weight being 0 to 10000; a version with 0, or that is not named, takes no new tasks.
        #[arg(required = true, value_parser = weight)]
        weights: Vec<(String, u32)>,
        /// The registry's own address. Default: the one that runs on the data folder.
        #[arg(long, env = "INKSTONE_REGISTRY_URL")]
        registry_url: Option<String>,
    },
}

fn scheduler() -> impl TypedValueParser<Value = Scheduler> {
    PossibleValuesParser::new(SCHEDULERS.iter().map(|(word, _)| *word))
        // Only a word of the list comes this far.
        .map(|word| meaning(SCHEDULERS, &word).unwrap_or_default())
}

pub(crate) async fn run(cli: Cli) -> Result<(), CliError> {
    let data = cli.data;
    match cli.command {
        Command::Up(args) => up::run(&data, &args).await,
        Command::Demo(args) => demo::run(&data, &args).await,
        Command::Generate(args) => generate::run(&data, &args).await,
        Command::Watch(args) => watch::run(&data, &args).await,
        Command::Cancel { task, server } => client::cancel(&data, &server, &task).await,
        Command::Keys { command, auth, tls } => keys::run(&data, &auth, &tls, command).await,
        Command::Policies { command, auth, tls } => {
            policies::run(&data, &auth, &tls, command).await
        }
        Command::Models { command, tls } => models::run(&data, &tls, command).await,
        Command::Dead { args, tls } => dead::run(&data, &tls, args).await,
        Command::Audit { command } => audit::run(&data, &command),
        Command::Inspect { file } => inspect::run(&file),
        Command::Doctor { server } => doctor::run(&data, &server).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_makes_sense() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_scheduler_can_be_named_and_another_is_answered_with_the_words() {
        let parse = |args: &[&str]| {
            let args = ["inkstone", "generate", "a cat"].iter().chain(args);
            match Cli::try_parse_from(args).map(|cli| cli.command) {
                Ok(Command::Generate(args)) => Ok(args),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.to_string()),
            }
        };
        for (word, scheduler) in SCHEDULERS {
            let args = parse(&["--scheduler", word]).unwrap();
            assert_eq!(args.scheduler, Some(*scheduler));
        }
        let error = parse(&["--scheduler", "plms"]).unwrap_err();
        assert!(error.contains("dpm++2m-sde-karras"), "{error}");
        let args = parse(&["--weighted", "--guidance-rescale", "0.7"]).unwrap();
        assert_eq!((args.weighted, args.guidance_rescale), (true, Some(0.7)));
        assert!(!args.visible_label);
        assert!(parse(&["--visible-label"]).unwrap().visible_label);
        for bad in ["1.1", "-1", "NaN", "x"] {
            assert!(parse(&[&format!("--guidance-rescale={bad}")]).is_err());
        }
    }

    #[test]
    fn a_negative_number_is_answered_with_what_may_be_there() {
        let refused_by = |command: &[&str], option: &str, value: &str| {
            let args = [&["inkstone"][..], command, &[option, value]].concat();
            Cli::try_parse_from(args).unwrap_err().to_string()
        };
        let refused = |option: &str, value: &str| refused_by(&["generate", "a cat"], option, value);
        assert!(refused("--seed", "-1").contains("from 0 to 18446744073709551615"));
        assert!(refused("-n", "-1").contains("from 1 to 10"));
        assert!(refused("--steps", "-1").contains("a whole number"));
        assert!(refused("--guidance-rescale", "-1").contains("from 0 to 1"));
        assert!(refused("--patience", "-1").contains("such as 30s"));
        let set = ["policies", "set", "dev-"];
        for option in ["--requests-per-second", "--burst"] {
            for bad in ["-1", "5000000000"] {
                assert!(refused_by(&set, option, bad).contains("from 1 to 1000000,"));
            }
        }
        for option in [
            "--tasks-waiting",
            "--tasks-running",
            "--images-per-day",
            "--pixel-steps-per-day",
        ] {
            assert!(refused_by(&set, option, "-1").contains("or none"));
        }
        assert!(refused_by(&["dead", "list"], "--limit", "-1").contains("1..=200"));
    }
}
