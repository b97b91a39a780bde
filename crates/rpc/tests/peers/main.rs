//! A peer as its callers meet it: over real connections, with a server that fails, hangs, dies and comes back.

// Helpers of tests fail by panicking, like the tests themselves.
#![allow(clippy::unwrap_used)]

mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use contract::auth::auth_service_client::AuthServiceClient;
use contract::auth::auth_service_server::{AuthService, AuthServiceServer};
use contract::auth::authenticate_answer::Answer;
use contract::auth::{
    AuthenticateAnswer, AuthenticateCall, AuthenticateEachRequest, AuthenticateEachResponse,
    AuthenticateMessagesRequest, AuthenticateMessagesResponse, AuthenticateRequest,
    AuthenticateResponse, ChargeRequest, ChargeResponse, IssueTokenRequest, IssueTokenResponse,
    ListTokenKeysRequest, ListTokenKeysResponse, RateLimit, RenewAssertionRequest,
    RenewAssertionResponse, SignWebhookRequest, SignWebhookResponse, VouchRequest, VouchResponse,
};
use contract::{ErrorCode, Failure};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use lifecycle::Service;
use rpc::{Asked, BreakerState, Peer, PeerSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tonic::{Code, Request, Response, Status};

/// How long a group of calls takes to fail.
const FAILS_AFTER: Duration = Duration::from_millis(300);

/// What the server does with a call.
#[derive(Clone)]
enum Manner {
    Answers,
    Refuses(Status),
    Hangs,
    /// Fails this many calls, then answers.
    FailsFirst(u32),
}

/// A server whose manner can change; it answers with what is left of the caller's deadline.
#[derive(Clone)]
struct Moody {
    manner: Arc<Mutex<Manner>>,
    calls: Arc<AtomicU32>,
    dropped: Arc<AtomicU32>,
}

struct Dropped(Arc<AtomicU32>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl AuthService for Moody {
    type AuthenticateEachStream = BoxStream<'static, Result<AuthenticateEachResponse, Status>>;
    type AuthenticateMessagesStream =
        BoxStream<'static, Result<AuthenticateMessagesResponse, Status>>;

    async fn authenticate(
        &self,
        _: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let manner = self.manner.lock().await.clone();
        match manner {
            Manner::Refuses(status) => return Err(status),
            Manner::FailsFirst(count) if number < count => return Err(broken()),
            Manner::Hangs => {
                let _dropped = Dropped(self.dropped.clone());
                std::future::pending::<()>().await;
            }
            Manner::Answers | Manner::FailsFirst(_) => {}
        }
        let left = rpc::deadline::left().unwrap_or_default();
        Ok(Response::new(AuthenticateResponse {
            caller: None,
            rate_limit: Some(RateLimit {
                reset_ms: left.as_millis() as u64,
                ..RateLimit::default()
            }),
        }))
    }

    /// Each call is answered with what is left of its time.
    async fn authenticate_each(
        &self,
        request: Request<AuthenticateEachRequest>,
    ) -> Result<Response<Self::AuthenticateEachStream>, Status> {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let manner = self.manner.lock().await.clone();
        if let Manner::FailsFirst(count) = manner
            && number < count
        {
            tokio::time::sleep(FAILS_AFTER).await;
            return Err(broken());
        }
        let calls = request.into_inner().calls.into_iter().map(|call| Asked {
            question: (),
            timeout: Duration::from_millis(call.timeout_ms.into()),
            traceparent: call.traceparent,
        });
        let answers = rpc::each("AuthenticateEach", calls.collect(), async |()| {
            let left = rpc::deadline::left().unwrap_or_default();
            Ok(left.as_millis() as u64)
        });
        let answers = answers.await?.map(|some| {
            let answer = |(call, left): (u32, Result<u64, Failure>)| AuthenticateAnswer {
                call,
                answer: Some(match left {
                    Ok(reset_ms) => Answer::Admitted(AuthenticateResponse {
                        caller: None,
                        rate_limit: Some(RateLimit {
                            reset_ms,
                            ..RateLimit::default()
                        }),
                    }),
                    Err(failure) => Answer::Refused(failure.into()),
                }),
            };
            let answers = some.into_iter().map(answer).collect();
            Ok(AuthenticateEachResponse { answers })
        });
        Ok(Response::new(answers.boxed()))
    }

    async fn authenticate_messages(
        &self,
        _: Request<AuthenticateMessagesRequest>,
    ) -> Result<Response<Self::AuthenticateMessagesStream>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn vouch(&self, _: Request<VouchRequest>) -> Result<Response<VouchResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn sign_webhook(
        &self,
        _: Request<SignWebhookRequest>,
    ) -> Result<Response<SignWebhookResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn renew_assertion(
        &self,
        _: Request<RenewAssertionRequest>,
    ) -> Result<Response<RenewAssertionResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn charge(&self, _: Request<ChargeRequest>) -> Result<Response<ChargeResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn issue_token(
        &self,
        _: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }

    async fn list_token_keys(
        &self,
        _: Request<ListTokenKeysRequest>,
    ) -> Result<Response<ListTokenKeysResponse>, Status> {
        Err(Status::unimplemented("not asked for here"))
    }
}

/// As a transport says it, with no word of a service of ours.
fn broken() -> Status {
    Status::unavailable("connection reset")
}

struct Bench {
    service: Service,
    address: SocketAddr,
    moody: Moody,
}

impl Bench {
    async fn start(manner: Manner) -> Self {
        let moody = Moody {
            manner: Arc::new(Mutex::new(manner)),
            calls: Arc::default(),
            dropped: Arc::default(),
        };
        Self::on("127.0.0.1:0".parse().unwrap(), moody).await
    }

    async fn on(address: SocketAddr, moody: Moody) -> Self {
        let mut service = Service::new("test");
        let routes = tonic::service::Routes::new(AuthServiceServer::new(moody.clone()));
        let address = rpc::serve(&mut service, address, routes).await.unwrap();
        Self {
            service,
            address,
            moody,
        }
    }

    async fn become_(&self, manner: Manner) {
        *self.moody.manner.lock().await = manner;
    }

    fn calls(&self) -> u32 {
        self.moody.calls.load(Ordering::SeqCst)
    }
}

fn settings(address: SocketAddr, timeout: &str) -> PeerSettings {
    PeerSettings::new(format!("http://{address}"), timeout.parse().unwrap())
}

async fn call(peer: &Peer) -> Result<Duration, Status> {
    asked(peer, Request::new(AuthenticateRequest::default())).await
}

async fn asked(peer: &Peer, request: Request<AuthenticateRequest>) -> Result<Duration, Status> {
    let answer = AuthServiceClient::new(peer.clone())
        .authenticate(request)
        .await?;
    let limit = answer.into_inner().rate_limit.unwrap();
    Ok(Duration::from_millis(limit.reset_ms))
}

#[tokio::test]
async fn a_peer_that_fails_is_left_alone_with_an_honest_wait_and_called_again_once_it_is_well() {
    let bench = Bench::start(Manner::Refuses(Status::internal("broken"))).await;
    let mut settings = settings(bench.address, "5s");
    settings.breaker.open_for = "700ms".parse().unwrap();
    let peer = rpc::peer("auth", &settings).unwrap();
    let mut state = peer.breaker();
    for _ in 0..11 {
        assert_eq!(call(&peer).await.unwrap_err().code(), Code::Internal);
    }
    assert_eq!(*state.borrow_and_update(), BreakerState::Open);
    let kept_back = Failure::from(call(&peer).await.unwrap_err());
    assert_eq!(kept_back.code, ErrorCode::Unavailable);
    let wait = kept_back.retry_after.unwrap();
    assert!(
        wait > Duration::ZERO && wait <= Duration::from_millis(700),
        "{wait:?}"
    );
    assert_eq!(bench.calls(), 11, "nothing went out");

    // After exactly that wait, a probe goes out; it fails, and the wait begins again.
    tokio::time::sleep(wait + Duration::from_millis(5)).await;
    assert_eq!(call(&peer).await.unwrap_err().code(), Code::Internal);
    bench.become_(Manner::Answers).await;
    let again = Failure::from(call(&peer).await.unwrap_err());
    tokio::time::sleep(again.retry_after.unwrap() + Duration::from_millis(5)).await;
    for _ in 0..3 {
        call(&peer).await.unwrap();
    }
    assert_eq!(*state.borrow_and_update(), BreakerState::Closed);
    assert!(bench.service.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_peer_that_hangs_opens_its_breaker_but_callers_in_a_hurry_do_not() {
    let bench = Bench::start(Manner::Hangs).await;
    let peer = rpc::peer("auth", &settings(bench.address, "300ms")).unwrap();
    let state = peer.breaker();
    for _ in 0..30 {
        let hurry = rpc::deadline::within(Duration::from_millis(5), call(&peer)).await;
        assert_eq!(hurry.unwrap_err().code(), Code::DeadlineExceeded);
    }
    assert_eq!(*state.borrow(), BreakerState::Closed);
    let calls = (0..11).map(|_| call(&peer));
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer.unwrap_err().code(), Code::DeadlineExceeded);
    }
    assert_eq!(*state.borrow(), BreakerState::Open);
    assert!(bench.service.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_service_that_says_itself_that_it_cannot_just_now_is_heard_and_neither_asked_again_nor_left_alone()
 {
    let full = Failure::unavailable("the task log is full", Duration::from_secs(7));
    let bench = Bench::start(Manner::Refuses(full.clone().into())).await;
    let peer = rpc::peer("auth", &settings(bench.address, "5s")).unwrap();
    for _ in 0..20 {
        let request = rpc::idempotent(AuthenticateRequest::default());
        assert_eq!(
            Failure::from(asked(&peer, request).await.unwrap_err()),
            full
        );
    }
    assert_eq!(bench.calls(), 20);
    assert_eq!(*peer.breaker().borrow(), BreakerState::Closed);
    assert!(bench.service.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_peer_says_whether_it_is_ready_and_in_its_own_words_why_not() {
    let bench = Bench::start(Manner::Answers).await;
    let peer = rpc::peer("auth", &settings(bench.address, "5s")).unwrap();
    let not_ready = async || peer.not_ready().await.unwrap();
    assert_eq!(not_ready().await.unwrap(), "still starting");
    let service = bench.service.started();
    assert_eq!(not_ready().await, None);
    let check = service.health.check("broker");
    check.fail("n’est pas là");
    assert_eq!(not_ready().await.unwrap(), "broker: n’est pas là");
    // What only limits it is its own affair, and words without end are cut.
    check.limit("full");
    assert_eq!(not_ready().await, None);
    check.fail("é".repeat(10_000));
    let long = not_ready().await.unwrap();
    assert!(
        long.starts_with("broker: éé") && long.len() <= 1024,
        "{long}"
    );
    // Its readiness is no word on whether it answers.
    call(&peer).await.unwrap();
    assert!(service.stop(Duration::from_secs(5)).await);
    assert!(peer.not_ready().await.is_err());
}

#[tokio::test]
async fn only_a_call_that_may_be_carried_out_twice_is_sent_again() {
    let bench = Bench::start(Manner::FailsFirst(1)).await;
    let peer = rpc::peer("auth", &settings(bench.address, "5s")).unwrap();
    assert_eq!(call(&peer).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(bench.calls(), 1);
    bench.become_(Manner::FailsFirst(3)).await;
    asked(&peer, rpc::idempotent(AuthenticateRequest::default()))
        .await
        .unwrap();
    assert_eq!(bench.calls(), 4);
    assert!(bench.service.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn calls_of_a_group_that_is_sent_again_have_no_more_time_than_is_left_of_theirs() {
    let bench = Bench::start(Manner::FailsFirst(2)).await;
    let peer = rpc::peer("auth", &settings(bench.address, "5s")).unwrap();
    let call = |timeout_ms| AuthenticateCall {
        timeout_ms,
        ..AuthenticateCall::default()
    };
    // The first is over before the group gets through.
    let calls = vec![call(500), call(2000)];
    let request = rpc::idempotent(AuthenticateEachRequest { calls });
    let answers = AuthServiceClient::new(peer)
        .authenticate_each(request)
        .await;
    let mut answers = answers.unwrap().into_inner();
    let mut heard = Vec::new();
    while let Some(some) = answers.message().await.unwrap() {
        heard.extend(some.answers);
    }
    heard.sort_by_key(|answer| answer.call);
    assert_eq!(bench.calls(), 3);
    let Some(Answer::Admitted(second)) = &heard[1].answer else {
        panic!("{heard:?}");
    };
    let left = Duration::from_millis(second.rate_limit.unwrap().reset_ms);
    assert!(left <= Duration::from_secs(2) - 2 * FAILS_AFTER, "{left:?}");
    let Some(Answer::Refused(first)) = &heard[0].answer else {
        panic!("{heard:?}");
    };
    assert_eq!(first.code, ErrorCode::DeadlineExceeded.to_string());
    assert!(bench.service.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn retries_end_with_their_budget() {
    let bench = Bench::start(Manner::Refuses(broken())).await;
    let mut settings = settings(bench.address, "5s");
    settings.breaker.failures = 10_000;
    let peer = rpc::peer("auth", &settings).unwrap();
    let began = Instant::now();
    let calls = (0..100).map(|_| asked(&peer, rpc::idempotent(AuthenticateRequest::default())));
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer.unwrap_err().code(), Code::Unavailable);
    }
    // A tenth of the calls, and the five spare ones of each ten seconds.
    let spare = 5 * (1 + began.elapsed().as_secs() as u32 / 10);
    let sent = bench.calls();
    assert!(sent > 100 && sent <= 110 + spare + 1, "{sent}");
    assert!(bench.service.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_call_that_never_left_is_sent_again_whatever_it_is() {
    let bench = Bench::start(Manner::Answers).await;
    let (address, moody) = (bench.address, bench.moody.clone());
    assert!(bench.service.stop(Duration::from_secs(5)).await);
    let mut settings = settings(address, "20s");
    settings.retries.attempts = 1000;
    settings.retries.spare = 1000;
    settings.breaker.failures = 10_000;
    let peer = rpc::peer("auth", &settings).unwrap();
    let (answer, bench) = tokio::join!(call(&peer), async {
        // It has been tried in vain before the peer comes back.
        let tried = std::net::TcpStream::connect(address);
        assert!(tried.is_err());
        Bench::on(address, moody).await
    });
    answer.unwrap();
    assert_eq!(bench.calls(), 1);
    assert!(bench.service.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_call_whose_connection_goes_away_under_it_is_lost_and_not_late() {
    /// HTTP/2: settings, and a farewell that leaves out what has come.
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Each connection goes in another way; what is written may find it closed.
    let closing = async {
        for way in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = [0; 4096];
            let _ = stream.write_all(&SETTINGS).await;
            if way % 2 == 1 {
                let _ = stream.read(&mut seen).await;
            }
            if way % 4 >= 2 {
                let _ = stream.write_all(&GOAWAY).await;
            }
        }
    };
    let mut settings = settings(address, "5s");
    settings.breaker.failures = 10_000;
    let peer = rpc::peer("auth", &settings).unwrap();
    let calls = async {
        for _ in 0..40 {
            let began = Instant::now();
            let lost = call(&peer).await.unwrap_err();
            assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
            assert!(began.elapsed() < Duration::from_secs(5));
        }
    };
    tokio::select! {
        () = closing => {}
        () = calls => {}
    }
}

#[tokio::test]
async fn what_is_left_of_the_callers_deadline_goes_on_less_a_margin() {
    let bench = Bench::start(Manner::Answers).await;
    let peer = rpc::peer("auth", &settings(bench.address, "5s")).unwrap();
    let whole = call(&peer).await.unwrap();
    assert!(
        whole > Duration::from_secs(3) && whole <= Duration::from_secs(5),
        "{whole:?}"
    );
    let limit = Duration::from_secs(2);
    let left = rpc::deadline::within(limit, call(&peer)).await.unwrap();
    assert!(left <= limit - Duration::from_millis(20), "{left:?}");
    let none = rpc::deadline::within(Duration::ZERO, call(&peer)).await;
    let none = Failure::from(none.unwrap_err());
    assert_eq!(none.code, ErrorCode::DeadlineExceeded);
    assert_eq!(bench.calls(), 2, "what is too late is not sent");
    assert!(bench.service.stop(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn a_server_drops_work_whose_deadline_has_passed() {
    let bench = Bench::start(Manner::Hangs).await;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", bench.address));
    // Without our client, which would hang up by itself.
    let mut client = AuthServiceClient::new(endpoint.unwrap().connect_lazy());
    let mut request = Request::new(AuthenticateRequest::default());
    request.set_timeout(Duration::from_millis(200));
    let late = client.authenticate(request).await.unwrap_err();
    // The library's word for it, where its timer is first.
    assert!(matches!(
        late.code(),
        Code::DeadlineExceeded | Code::Cancelled
    ));
    let until = Instant::now() + Duration::from_secs(5);
    while bench.moody.dropped.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < until, "still at work");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(bench.service.stop(Duration::from_secs(5)).await);
}

#[test]
fn a_setting_that_cannot_be_is_named() {
    let mut settings = settings("127.0.0.1:1".parse().unwrap(), "5s");
    settings.breaker.percent = 0;
    let error = rpc::peer("auth", &settings).err().unwrap().to_string();
    assert_eq!(error, "auth.breaker.percent must be 1 to 100");
}
