//! The fields of a webhook that an update mask may name. Pure.

use postrider_proto::v1::{self, Auth, SignatureAuth, Webhook};
use v1::auth::Method;

use super::mask::{Field, Fields, is_set};

/// A field of the first level that has no finer paths.
macro_rules! plain {
    ($field:ident) => {
        Field {
            path: stringify!($field),
            populated: |from| is_set(&from.$field),
            copy: |from, to| to.$field.clone_from(&from.$field),
        }
    };
}

/// A field that has finer paths: without a mask those decide.
macro_rules! whole {
    ($field:ident) => {
        Field {
            path: stringify!($field),
            populated: |_| false,
            copy: |from, to| to.$field.clone_from(&from.$field),
        }
    };
}

/// A field of the second level.
macro_rules! nested {
    ($parent:ident . $field:ident) => {
        Field {
            path: concat!(stringify!($parent), ".", stringify!($field)),
            populated: |from| from.$parent.as_ref().is_some_and(|parent| is_set(&parent.$field)),
            copy: |from, to| {
                let value = from.$parent.as_ref().map(|parent| parent.$field.clone());
                to.$parent.get_or_insert_default().$field = value.unwrap_or_default();
            },
        }
    };
}

/// A method of authentication, or a field of one. When a field is set its method is chosen.
macro_rules! of_auth {
    ($name:ident, $method:ident) => {
        Field {
            path: concat!("auth.", stringify!($name)),
            // Without any field no finer path says that the method was chosen.
            populated: |from| matches!(method(from), Some(Method::$method(chosen)) if !is_set(chosen)),
            copy: |from, to| copy_method(from, to, |method| matches!(method, Method::$method(_))),
        }
    };
    ($name:ident, $method:ident . $field:ident) => {
        Field {
            path: concat!("auth.", stringify!($name), ".", stringify!($field)),
            populated: |from| matches!(method(from), Some(Method::$method(chosen)) if is_set(&chosen.$field)),
            copy: |from, to| {
                let mut chosen = if let Some(Method::$method(present)) = method(to) {
                    present.clone()
                } else {
                    Default::default()
                };
                chosen.$field = if let Some(Method::$method(given)) = method(from) {
                    given.$field.clone()
                } else {
                    Default::default()
                };
                to.auth = Some(Auth {
                    method: Some(Method::$method(chosen)),
                });
            },
        }
    };
}

/// The table.
pub(crate) const FIELDS: Fields<Webhook> = Fields {
    writable: &[
        plain!(display_name),
        plain!(description),
        plain!(target_url),
        whole!(auth),
        Field {
            path: "auth.none",
            populated: |from| matches!(method(from), Some(Method::None(_))),
            copy: |from, to| copy_method(from, to, |method| matches!(method, Method::None(_))),
        },
        of_auth!(basic, Basic),
        of_auth!(basic, Basic.username),
        of_auth!(basic, Basic.password),
        Field {
            path: "auth.signature",
            populated: |_| false,
            copy: |from, to| copy_method(from, to, |method| matches!(method, Method::Signature(_))),
        },
        Field {
            // Without any field it says that the method was chosen; the other fields of a signature that is there stay as they are.
            populated: |from| {
                matches!(method(from), Some(Method::Signature(signature))
                    if is_set(&signature.secret) || *signature == SignatureAuth::default())
            },
            ..of_auth!(signature, Signature.secret)
        },
        of_auth!(signature, Signature.algorithm),
        of_auth!(signature, Signature.id_header),
        of_auth!(signature, Signature.timestamp_header),
        of_auth!(signature, Signature.signature_header),
        of_auth!(bearer, Bearer),
        of_auth!(bearer, Bearer.token),
        of_auth!(api_key, ApiKey),
        of_auth!(api_key, ApiKey.header),
        of_auth!(api_key, ApiKey.value),
        of_auth!(oauth2, Oauth2),
        of_auth!(oauth2, Oauth2.token_url),
        of_auth!(oauth2, Oauth2.client_id),
        of_auth!(oauth2, Oauth2.client_secret),
        of_auth!(oauth2, Oauth2.scopes),
        of_auth!(oauth2, Oauth2.audience),
        of_auth!(oauth2, Oauth2.client_authentication),
        of_auth!(mtls, Mtls),
        of_auth!(mtls, Mtls.certificate),
        of_auth!(mtls, Mtls.private_key),
        plain!(event_types),
        plain!(filter),
        plain!(active),
        plain!(when_inactive),
        whole!(delivery),
        nested!(delivery.mode),
        nested!(delivery.max_events),
        nested!(delivery.max_bytes),
        nested!(delivery.max_delay),
        nested!(delivery.schedule),
        nested!(delivery.ordering),
        nested!(delivery.on_failure),
        nested!(delivery.max_in_flight),
        nested!(delivery.rate_limit),
        nested!(delivery.timeout),
        nested!(delivery.http_version),
        nested!(delivery.sequence_header),
        whole!(retry),
        nested!(retry.max_attempts),
        nested!(retry.initial_delay),
        nested!(retry.multiplier),
        nested!(retry.max_delay),
        nested!(retry.max_age),
        nested!(retry.never_retry),
        whole!(payload),
        nested!(payload.format),
        plain!(headers),
        plain!(labels),
    ],
    output_only: &[
        "uid",
        "etag",
        "create_time",
        "update_time",
        "generation",
        "state",
        "state_reason",
        "auth.signature.secret_ids",
    ],
};

fn method(webhook: &Webhook) -> Option<&Method> {
    webhook.auth.as_ref()?.method.as_ref()
}

/// Copies one alternative of the oneof: if the request does not have it, it is cleared.
fn copy_method(from: &Webhook, to: &mut Webhook, is: fn(&Method) -> bool) {
    if let Some(chosen) = method(from).filter(|method| is(method)) {
        to.auth = Some(Auth {
            method: Some(chosen.clone()),
        });
    } else if method(to).is_some_and(is) {
        to.auth = None;
    }
}

#[cfg(test)]
mod tests {
    use postrider_proto::v1::BasicAuth;

    use super::*;
    use crate::api::mask::merge;
    use crate::api::status::Violations;

    fn with_auth(method: Method) -> Webhook {
        Webhook {
            auth: Some(Auth { method: Some(method) }),
            ..Webhook::default()
        }
    }

    fn basic_auth(username: &str, password: &str) -> Webhook {
        with_auth(Method::Basic(BasicAuth {
            username: username.into(),
            password: password.into(),
        }))
    }

    fn merged(paths: &[&str], from: &Webhook, to: &Webhook) -> Webhook {
        let mut result = to.clone();
        let mut violations = Violations::default();
        let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
        merge(&FIELDS, &paths, from, &mut result, &mut violations);
        assert!(violations.is_empty());
        result
    }

    #[test]
    fn every_field_of_the_message_is_in_the_table() {
        let descriptors = prost_types::FileDescriptorSet::decode(postrider_proto::API_DESCRIPTOR).unwrap();
        let messages: Vec<_> = descriptors
            .file
            .iter()
            .filter(|file| file.package() == "postrider.v1")
            .flat_map(|file| &file.message_type)
            .collect();
        let fields = |name: &str| {
            let message = messages.iter().find(|message| message.name() == name).unwrap();
            message.field.iter().map(|field| field.name().to_owned())
        };
        let mut paths: Vec<String> = fields("Webhook").filter(|name| name != "name").collect();
        for (parent, message) in [
            ("auth", "Auth"),
            ("auth.basic", "BasicAuth"),
            ("auth.signature", "SignatureAuth"),
            ("auth.bearer", "BearerAuth"),
            ("auth.api_key", "ApiKeyAuth"),
            ("auth.oauth2", "OAuth2Auth"),
            ("auth.mtls", "MtlsAuth"),
            ("delivery", "DeliveryOptions"),
            ("retry", "RetryPolicy"),
            ("payload", "PayloadOptions"),
        ] {
            paths.extend(fields(message).map(|field| format!("{parent}.{field}")));
        }
        let mut table: Vec<String> = FIELDS.writable.iter().map(|field| field.path.to_owned()).collect();
        table.extend(FIELDS.output_only.iter().map(ToString::to_string));
        paths.sort();
        table.sort();
        assert_eq!(paths, table);
    }

    #[test]
    fn a_password_alone_leaves_the_user_name() {
        let to = basic_auth("alice", "");
        let expected = basic_auth("alice", "new");
        assert_eq!(merged(&["auth.basic.password"], &basic_auth("", "new"), &to), expected);
        assert_eq!(merged(&[], &basic_auth("", "new"), &to), expected);
    }

    #[test]
    fn the_method_changes_when_another_is_set() {
        let none = with_auth(Method::None(v1::NoAuth {}));
        let signature = with_auth(Method::Signature(SignatureAuth::default()));
        for (from, to) in [
            (&none, &basic_auth("a", "")),
            (&signature, &none),
            (&basic_auth("", ""), &signature),
        ] {
            assert_eq!(merged(&[], from, to), *from);
            assert_eq!(merged(&["auth"], from, to), *from);
            assert_eq!(merged(&["*"], from, to), *from);
        }
        assert_eq!(merged(&["auth.signature"], &signature, &none), signature);
        assert_eq!(merged(&["auth.none"], &Webhook::default(), &none).auth, None);
        assert_eq!(merged(&["auth.none"], &Webhook::default(), &signature), signature);
    }

    #[test]
    fn a_nested_path_that_is_unset_in_the_request_goes_back_to_its_default() {
        let to = Webhook {
            retry: Some(v1::RetryPolicy {
                max_attempts: 5,
                multiplier: 3.0,
                ..v1::RetryPolicy::default()
            }),
            ..Webhook::default()
        };
        let result = merged(&["retry.max_attempts"], &Webhook::default(), &to).retry.unwrap();
        assert_eq!((result.max_attempts, result.multiplier), (0, 3.0));
    }

    use prost::Message as _;
}
