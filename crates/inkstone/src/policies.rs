//! `inkstone policies`: on auth's own address, with its admin token.

use std::collections::BTreeSet;
use std::path::Path;

use contract::ErrorCode;
use contract::auth::policy_service_client::PolicyServiceClient;
use contract::auth::{
    ListPoliciesRequest, Policy, PolicyInfo, RemovePolicyRequest, SetPolicyRequest,
};
use contract::registry::{ListModelsRequest, Model};
use rpc::{Identity, Peer};

use crate::cli::{AuthArgs, PoliciesCommand, PolicyArgs, TlsArgs};
use crate::client::{service_peer, with_bearer};
use crate::error::CliError;
use crate::keys::Operator;
use crate::models;
use crate::out::{complain, say};
use crate::place::Place;
use crate::values::Limit;

/// Among a policy's models: all there are.
const EVERY_MODEL: &str = "*";
const NEW_TIER: &str = "standard";

pub(crate) async fn run(
    data: &Path,
    args: &AuthArgs,
    tls: &TlsArgs,
    command: PoliciesCommand,
) -> Result<(), CliError> {
    let operator = Operator::of(data, args, tls)?;
    let mut policies = Policies {
        service: PolicyServiceClient::new(service_peer(&operator.auth, Identity::Auth, tls)?),
        operator,
    };
    match command {
        PoliciesCommand::List => print_all(&policies.list().await?),
        PoliciesCommand::Show { prefix } => {
            let all = policies.list().await?;
            let Some(one) = all.iter().find(|policy| policy.prefix == prefix) else {
                return Err(no_such_policy(prefix, all));
            };
            print_one(one);
        }
        PoliciesCommand::Set(change) => {
            let all = policies.list().await?;
            let before = all.into_iter().find(|p| p.prefix == change.prefix);
            let revision = before.as_ref().map_or(0, |before| before.revision);
            let (prefix, registry) = (change.prefix.clone(), registry_of(data, args, &change));
            let policy = changed(before.and_then(|before| before.policy), change)?;
            let request = SetPolicyRequest {
                prefix,
                policy: Some(policy.clone()),
                revision,
            };
            let set = policies.set(request).await?;
            let mut warnings = Vec::from_iter(without_lanes(&policy.tier));
            if let Some(url) = registry {
                let models = &policy.models;
                warnings.extend(known_models(data, tls, url, models).await);
            }
            for warning in warnings {
                complain!("inkstone: {warning}");
            }
            print_one(&set.ok_or(CliError::Answer("a change without a policy"))?);
        }
        PoliciesCommand::Remove {
            prefix,
            even_if_used,
        } => {
            let request = RemovePolicyRequest {
                prefix: prefix.clone(),
                even_if_used,
            };
            let removed = match policies.remove(request).await {
                Err(CliError::Refused(failure)) if failure.code == ErrorCode::NotFound => {
                    return Err(no_such_policy(prefix, policies.list().await?));
                }
                removed => removed?,
            };
            let keys = removed.map_or(0, |policy| policy.keys);
            say!("{prefix} removed; keys that are turned away: {keys}");
        }
    }
    Ok(())
}

struct Policies {
    operator: Operator,
    service: PolicyServiceClient<Peer>,
}

impl Policies {
    async fn list(&mut self) -> Result<Vec<PolicyInfo>, CliError> {
        let request = with_bearer(ListPoliciesRequest {}, &self.operator.token)?;
        let listed = self.service.list_policies(request);
        Ok(self.operator.auth.call(listed).await?.policies)
    }

    async fn set(&mut self, request: SetPolicyRequest) -> Result<Option<PolicyInfo>, CliError> {
        let request = with_bearer(request, &self.operator.token)?;
        let set = self.service.set_policy(request);
        Ok(self.operator.auth.call(set).await?.policy)
    }

    async fn remove(
        &mut self,
        request: RemovePolicyRequest,
    ) -> Result<Option<PolicyInfo>, CliError> {
        let request = with_bearer(request, &self.operator.token)?;
        let removed = self.service.remove_policy(request);
        Ok(self.operator.auth.call(removed).await?.policy)
    }
}

fn no_such_policy(prefix: String, all: Vec<PolicyInfo>) -> CliError {
    let known = all.into_iter().map(|policy| policy.prefix).collect();
    CliError::NoSuchPolicy { prefix, known }
}

/// A policy with what is given in it; what a new one needs must be given.
fn changed(before: Option<Policy>, change: PolicyArgs) -> Result<Policy, CliError> {
    let mut policy = match before {
        Some(before) => before,
        None => {
            let needed = |option| CliError::NewPolicy {
                prefix: change.prefix.clone(),
                option,
            };
            let rate = change.requests_per_second;
            let rate = rate.ok_or_else(|| needed("--requests-per-second"))?;
            Policy {
                models: change.models.clone().ok_or_else(|| needed("--models"))?,
                requests_per_second: rate,
                // A second's worth at once.
                burst: rate,
                tier: NEW_TIER.to_owned(),
                ..Policy::default()
            }
        }
    };
    put(&mut policy.models, change.models);
    put(&mut policy.hd, change.hd);
    put(&mut policy.requests_per_second, change.requests_per_second);
    put(&mut policy.burst, change.burst);
    put(&mut policy.tier, change.tier);
    put_limit(&mut policy.tasks_waiting, change.tasks_waiting);
    put_limit(&mut policy.tasks_running, change.tasks_running);
    put_limit(&mut policy.images_per_day, change.images_per_day);
    put_limit(&mut policy.pixel_steps_per_day, change.pixel_steps_per_day);
    Ok(policy)
}

/// What to say of a tier for which the orchestrator has no lanes, by its settings here: in this environment, else its defaults.
fn without_lanes(tier: &str) -> Option<String> {
    let settings: orchestrator::Settings = settings::load(None, &[]).ok()?;
    let scheduling = &settings.scheduling;
    let mut tiers: BTreeSet<&str> = BTreeSet::new();
    for lane in scheduling.lanes.keys() {
        for class in &scheduling.classes {
            let tier = lane.as_str().strip_suffix(class.name.as_str());
            tiers.extend(tier.and_then(|tier| tier.strip_suffix('-')));
        }
    }
    if tiers.contains(tier) {
        return None;
    }
    let tiers: Vec<&str> = tiers.into_iter().collect();
    Some(format!(
        "by the settings here there are no lanes for the tier {tier:?}: where the orchestrator has none either (scheduling.lanes), its \
         tasks run with the tier standard's. There are lanes for {}",
        tiers.join(", ")
    ))
}

/// The registry of the same platform, if it is known where that is.
fn registry_of(data: &Path, args: &AuthArgs, change: &PolicyArgs) -> Option<String> {
    let given = change.registry_url.clone();
    given.or_else(|| match args.auth_url {
        None => Place::at(data).running().map(|running| running.registry),
        // What runs on the folder is another platform then, or may be.
        Some(_) => None,
    })
}

/// What to say of a policy's models, once the registry was asked which there are.
async fn known_models(
    data: &Path,
    tls: &TlsArgs,
    url: String,
    models: &[String],
) -> Option<String> {
    let known = async {
        let (callee, mut registry) = models::registry(data, tls, Some(url))?;
        let listed = registry.list_models(rpc::idempotent(ListModelsRequest {}));
        Ok::<_, CliError>(callee.call(listed).await?.models)
    };
    match known.await {
        Ok(known) => unknown_models(models, &known),
        Err(error) => Some(format!(
            "the registry could not be asked whether there are the policy's models: {}",
            lifecycle::chain(&error)
        )),
    }
}

/// What to say of models that go by no name that there is.
fn unknown_models(models: &[String], known: &[Model]) -> Option<String> {
    let names = known
        .iter()
        .flat_map(|model| std::iter::once(&model.name).chain(&model.aliases));
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let named = models.iter().map(String::as_str);
    let unknown: Vec<&str> = named
        .filter(|name| *name != EVERY_MODEL && !names.contains(name))
        .collect();
    if unknown.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    Some(format!(
        "the registry knows no model {}: the policy opens none by that name until one is called so. There are {}",
        unknown.join(", "),
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    ))
}

fn put<T>(field: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *field = given;
    }
}

fn put_limit<T>(field: &mut Option<T>, given: Option<Limit<T>>) {
    match given {
        Some(Limit::Most(most)) => *field = Some(most),
        Some(Limit::None) => *field = None,
        None => {}
    }
}

fn print_all(all: &[PolicyInfo]) {
    if all.is_empty() {
        say!("There are no policies: every key is turned away.");
        return;
    }
    say!(
        "{:<14} {:>6} {:>8} {:>6} {:<5} {:<10} {:<30} MODELS",
        "PREFIX",
        "KEYS",
        "REQ/S",
        "BURST",
        "HD",
        "TIER",
        "WAITING/RUNNING/IMAGES/WORK"
    );
    for info in all {
        let Some(policy) = &info.policy else { continue };
        let limits = [
            shown(policy.tasks_waiting),
            shown(policy.tasks_running),
            shown(policy.images_per_day),
            shown(policy.pixel_steps_per_day),
        ];
        say!(
            "{:<14} {:>6} {:>8} {:>6} {:<5} {:<10} {:<30} {}",
            info.prefix,
            info.keys,
            policy.requests_per_second,
            policy.burst,
            policy.hd,
            policy.tier,
            limits.join("/"),
            policy.models.join(","),
        );
    }
}

fn print_one(info: &PolicyInfo) {
    let Some(policy) = &info.policy else { return };
    let line = |name: &str, value: String| say!("{name:<20} {value}");
    line("prefix", info.prefix.clone());
    line("keys", info.keys.to_string());
    line("models", policy.models.join(","));
    line("hd", policy.hd.to_string());
    line(
        "requests per second",
        policy.requests_per_second.to_string(),
    );
    line("burst", policy.burst.to_string());
    line("tier", policy.tier.clone());
    line("tasks waiting", shown(policy.tasks_waiting));
    line("tasks running", shown(policy.tasks_running));
    line("images per day", shown(policy.images_per_day));
    line("pixel steps per day", shown(policy.pixel_steps_per_day));
}

fn shown<T: ToString>(limit: Option<T>) -> String {
    limit.map_or_else(|| "none".to_owned(), |most| most.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays_and_none_takes_a_limit_away() {
        let before = Policy {
            models: vec!["*".to_owned()],
            requests_per_second: 5,
            burst: 7,
            images_per_day: Some(100),
            tasks_waiting: Some(3),
            ..Policy::default()
        };
        let change = PolicyArgs {
            requests_per_second: Some(10),
            images_per_day: Some(Limit::None),
            tasks_running: Some(Limit::Most(2)),
            ..PolicyArgs::default()
        };
        let after = changed(Some(before.clone()), change).unwrap();
        let expected = Policy {
            requests_per_second: 10,
            images_per_day: None,
            tasks_running: Some(2),
            ..before
        };
        assert_eq!(after, expected);
    }

    #[test]
    fn a_tier_without_lanes_is_told_with_those_there_are() {
        assert_eq!(without_lanes("standard"), None);
        assert_eq!(without_lanes("priority"), None);
        for tier in ["gold", "prio"] {
            let told = without_lanes(tier).unwrap();
            assert!(
                told.contains(tier) && told.ends_with("lanes for priority, standard"),
                "{told}"
            );
        }
    }

    #[test]
    fn models_that_the_registry_does_not_know_are_told_by_name() {
        let known = Model {
            name: "sdxl".to_owned(),
            aliases: vec!["t2i-basic".to_owned()],
            ..Model::default()
        };
        let told = |models: &[&str]| {
            let models: Vec<_> = models.iter().map(|name| (*name).to_owned()).collect();
            unknown_models(&models, std::slice::from_ref(&known))
        };
        assert_eq!(told(&["*"]), None);
        assert_eq!(told(&["sdxl", "t2i-basic"]), None);
        let some = told(&["sdxl", "sdlx", "i2v"]).unwrap();
        assert!(some.contains("no model sdlx, i2v:"), "{some}");
        assert!(some.ends_with("There are sdxl, t2i-basic"), "{some}");
        assert!(unknown_models(&["a".to_owned()], &[]).is_some());
    }

    #[test]
    fn a_new_policy_hears_what_it_needs() {
        let mut new = PolicyArgs {
            prefix: "gold-".to_owned(),
            ..PolicyArgs::default()
        };
        let error = changed(None, new).unwrap_err().to_string();
        assert!(error.contains("--requests-per-second"), "{error}");
        new = PolicyArgs {
            prefix: "gold-".to_owned(),
            requests_per_second: Some(20),
            ..PolicyArgs::default()
        };
        let error = changed(None, new).unwrap_err().to_string();
        assert!(error.contains("--models"), "{error}");
    }
}
