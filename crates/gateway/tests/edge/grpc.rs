//! gRPC on the same port.

use std::time::{Duration, Instant};

use contract::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use contract::v1::image_service_client::ImageServiceClient;
use contract::{ErrorCode, Failure, inference, v1};
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::Edge;
use crate::client::ask;

async fn channel(edge: &Edge) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", edge.address)).unwrap();
    endpoint.connect().await.unwrap()
}

#[tokio::test]
async fn a_call_without_credentials_is_refused_with_our_code() {
    let edge = Edge::start(&[]).await;
    let mut client = ImageServiceClient::new(channel(&edge).await);
    let status = client
        .list_models(v1::ListModelsRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.metadata().get("x-request-id").is_some());
    assert_eq!(Failure::from(status).code, ErrorCode::Unauthenticated);
    edge.stop().await;
}

#[tokio::test]
async fn a_call_whose_head_has_two_readings_is_refused_by_the_headers_name() {
    let edge = Edge::start(&[]).await;
    let mut client = ImageServiceClient::new(channel(&edge).await);
    let mut request = Request::new(v1::GetRequest::default());
    for value in ["a", "b"] {
        let metadata = request.metadata_mut();
        metadata.append("idempotency-key", value.parse().unwrap());
    }
    let failure = Failure::from(client.get(request).await.unwrap_err());
    assert_eq!(failure.code, ErrorCode::InvalidArgument);
    assert_eq!(failure.field.as_deref(), Some("Idempotency-Key"));
    edge.stop().await;
}

#[tokio::test]
async fn when_auth_is_not_there_the_status_is_unavailable_with_a_wait() {
    let edge = Edge::start(&[]).await;
    let mut client = ImageServiceClient::new(channel(&edge).await);
    let mut request = Request::new(v1::GetRequest::default());
    request
        .metadata_mut()
        .insert("authorization", "Bearer k".parse().unwrap());
    let status = client.get(request).await.unwrap_err();
    let failure = Failure::from(status);
    assert_eq!(failure.code, ErrorCode::Unavailable);
    assert!(failure.retry_after.is_some());
    edge.stop().await;
}

#[tokio::test]
async fn health_needs_no_credentials_and_says_what_readyz_says() {
    let edge = Edge::start(&[]).await;
    let mut client = HealthClient::new(channel(&edge).await);
    for service in ["inkstone.v1.ImageService", "inference.GRPCInferenceService"] {
        // Told by a task that looks every second.
        loop {
            let service = service.to_owned();
            match client.check(HealthCheckRequest { service }).await {
                Ok(answer) => {
                    assert_eq!(answer.into_inner().status(), ServingStatus::NotServing);
                    break;
                }
                Err(status) => assert_eq!(status.code(), Code::NotFound),
            }
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn streams_without_a_key_fill_a_room_of_their_own_and_take_none_from_a_check() {
    // As behind a proxy, where one address is everyone's.
    let edge = Edge::start(&[("http.max_connections_per_address", "4096")]).await;
    let mut client = HealthClient::new(channel(&edge).await);
    let mut open = Vec::new();
    // As many as there may be, and as one connection may have.
    for _ in 0..256 {
        let stream = client.watch(HealthCheckRequest::default()).await.unwrap();
        open.push(stream.into_inner());
    }
    let mut other = HealthClient::new(channel(&edge).await);
    let refused = other.watch(HealthCheckRequest::default()).await;
    let refused = Failure::from(refused.unwrap_err());
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(refused.retry_after.is_some(), "{refused}");
    let why = "streams without a key are open";
    assert!(refused.message.contains(why), "{refused}");
    other.check(HealthCheckRequest::default()).await.unwrap();
    drop(open);
    let until = Instant::now() + Duration::from_secs(30);
    while let Err(status) = other.watch(HealthCheckRequest::default()).await {
        assert!(Instant::now() < until, "no place is free: {status}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    edge.stop().await;
}

#[tokio::test]
async fn one_address_has_a_share_of_streams_without_a_key_over_all_its_connections() {
    let edge = Edge::start(&[]).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut client = HealthClient::new(channel(&edge).await);
        for _ in 0..16 {
            let stream = client.watch(HealthCheckRequest::default()).await.unwrap();
            open.push(stream.into_inner());
        }
    }
    let mut other = HealthClient::new(channel(&edge).await);
    let refused = other.watch(HealthCheckRequest::default()).await;
    let refused = Failure::from(refused.unwrap_err());
    assert_eq!(refused.code, ErrorCode::RateLimited);
    let why = "streams without a key are open for one address, which may have 64";
    assert!(refused.message.contains(why), "{refused}");
    other.check(HealthCheckRequest::default()).await.unwrap();
    drop(open);
    edge.stop().await;
}

#[tokio::test]
async fn a_stream_without_a_key_makes_way_in_a_full_house() {
    let edge = Edge::start(&[("http.max_connections", "1")]).await;
    let mut client = HealthClient::new(channel(&edge).await);
    let stream = client.watch(HealthCheckRequest::default()).await.unwrap();
    let mut stream = stream.into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let answer = ask(edge.address, "GET /healthz");
    let answer = tokio::time::timeout(Duration::from_secs(8), answer).await;
    assert_eq!(answer.unwrap().status, 200);
    drop(stream);
    edge.stop().await;
}

#[tokio::test]
async fn the_inference_service_tells_its_own_state_without_a_key_and_nothing_else() {
    let edge = Edge::start(&[]).await;
    let mut client = GrpcInferenceServiceClient::new(channel(&edge).await);
    let live = client.server_live(inference::ServerLiveRequest {}).await;
    assert!(live.unwrap().into_inner().live);
    let ready = client.server_ready(inference::ServerReadyRequest {}).await;
    assert!(!ready.unwrap().into_inner().ready);
    let refused = client
        .model_infer(inference::ModelInferRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let requests = futures::stream::iter([inference::ModelInferRequest::default()]);
    let refused = client.model_stream_infer(requests).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    edge.stop().await;
}

#[tokio::test]
async fn a_stream_is_refused_by_its_headers_without_waiting_for_its_end() {
    let edge = Edge::start(&[]).await;
    let signed = [
        "x-app-key",
        "x-timestamp",
        "x-nonce",
        "x-content-sha256",
        "x-signature",
    ]
    .map(|name| (name, "1"));
    let keyed = [("authorization", "Bearer k"), ("idempotency-key", "k")];
    for (headers, code, words) in [
        (&signed[..], ErrorCode::Unauthenticated, "signature v2"),
        (&keyed[..], ErrorCode::InvalidArgument, "idempotency key"),
    ] {
        let mut client = GrpcInferenceServiceClient::new(channel(&edge).await);
        // Which is still open.
        let requests = futures::stream::pending::<inference::ModelInferRequest>();
        let mut request = Request::new(requests);
        for &(name, value) in headers {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        let failure = Failure::from(client.model_stream_infer(request).await.unwrap_err());
        assert_eq!(failure.code, code);
        assert!(failure.message.contains(words), "{failure}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn reflection_lists_what_is_public_and_nothing_else() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let edge = Edge::start(&[]).await;
    let mut client = ServerReflectionClient::new(channel(&edge).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = futures::stream::iter([request]);
    let mut answers = client
        .server_reflection_info(requests)
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("not a list: {answer:?}");
    };
    let mut names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    names.sort();
    names.dedup();
    let expected = [
        "grpc.health.v1.Health",
        "inference.GRPCInferenceService",
        "inkstone.v1.ImageService",
    ];
    assert_eq!(names, expected);
    drop((answers, client));
    edge.stop().await;
}
