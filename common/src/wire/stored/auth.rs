//! Authentication of webhooks as it is stored. Pure.

use postrider_proto::stored as pb;
use postrider_proto::stored::webhook::Auth as Stored;

use super::{Unreadable, unreadable};
use crate::model::auth::{Auth, ClientAuthentication, OAuth2, SignatureHeaders, SigningSecret};
use crate::secret::Sealed;
use crate::signature::Algorithm;
use crate::time::Timestamp;

pub(super) fn to_pb(auth: &Auth) -> Option<Stored> {
    Some(match auth {
        Auth::None => return None,
        Auth::Basic { username, password } => Stored::Basic(pb::BasicAuth {
            username: username.clone(),
            password: Some(sealed_to_pb(password)),
        }),
        Auth::Signature {
            algorithm,
            headers,
            secrets,
        } => Stored::Signature(pb::SignatureAuth {
            secrets: secrets.iter().map(signing_to_pb).collect(),
            algorithm: match algorithm {
                Algorithm::HmacSha256 => 0,
                Algorithm::Ed25519 => 1,
            },
            id_header: unless(&headers.id, SignatureHeaders::ID),
            timestamp_header: unless(&headers.timestamp, SignatureHeaders::TIMESTAMP),
            signature_header: unless(&headers.signature, SignatureHeaders::SIGNATURE),
        }),
        Auth::Bearer { token } => Stored::Bearer(pb::BearerAuth {
            token: Some(sealed_to_pb(token)),
        }),
        Auth::ApiKey { header, value } => Stored::ApiKey(pb::ApiKeyAuth {
            header: header.clone(),
            value: Some(sealed_to_pb(value)),
        }),
        Auth::OAuth2(client) => Stored::Oauth2(pb::OAuth2Auth {
            token_url: client.token_url.clone(),
            client_id: client.client_id.clone(),
            client_secret: Some(sealed_to_pb(&client.client_secret)),
            scopes: client.scopes.clone(),
            audience: client.audience.clone(),
            client_authentication: match client.client_authentication {
                ClientAuthentication::Basic => 0,
                ClientAuthentication::Body => 1,
            },
        }),
        Auth::Mtls {
            certificate,
            private_key,
        } => Stored::Mtls(pb::MtlsAuth {
            certificate: certificate.clone(),
            private_key: Some(sealed_to_pb(private_key)),
        }),
    })
}

pub(super) fn from_pb(auth: Option<Stored>) -> Result<Auth, Unreadable> {
    Ok(match auth {
        None => Auth::None,
        Some(Stored::Basic(basic)) => Auth::Basic {
            username: basic.username,
            password: sealed_from_pb(basic.password)?,
        },
        Some(Stored::Signature(signature)) => Auth::Signature {
            algorithm: match signature.algorithm {
                0 => Algorithm::HmacSha256,
                1 => Algorithm::Ed25519,
                other => return Err(unreadable(format!("signature algorithm {other}"))),
            },
            headers: SignatureHeaders {
                id: or(signature.id_header, SignatureHeaders::ID),
                timestamp: or(signature.timestamp_header, SignatureHeaders::TIMESTAMP),
                signature: or(signature.signature_header, SignatureHeaders::SIGNATURE),
            },
            secrets: signature
                .secrets
                .into_iter()
                .map(signing_from_pb)
                .collect::<Result<_, _>>()?,
        },
        Some(Stored::Bearer(bearer)) => Auth::Bearer {
            token: sealed_from_pb(bearer.token)?,
        },
        Some(Stored::ApiKey(key)) => Auth::ApiKey {
            header: key.header,
            value: sealed_from_pb(key.value)?,
        },
        Some(Stored::Oauth2(client)) => Auth::OAuth2(OAuth2 {
            token_url: client.token_url,
            client_id: client.client_id,
            client_secret: sealed_from_pb(client.client_secret)?,
            scopes: client.scopes,
            audience: client.audience,
            client_authentication: match client.client_authentication {
                0 => ClientAuthentication::Basic,
                1 => ClientAuthentication::Body,
                other => return Err(unreadable(format!("client authentication {other}"))),
            },
        }),
        Some(Stored::Mtls(mtls)) => Auth::Mtls {
            certificate: mtls.certificate,
            private_key: sealed_from_pb(mtls.private_key)?,
        },
    })
}

/// The standard name is stored as nothing.
fn unless(name: &str, standard: &str) -> String {
    if name == standard {
        String::new()
    } else {
        name.to_owned()
    }
}

fn or(name: String, standard: &str) -> String {
    if name.is_empty() { standard.to_owned() } else { name }
}

fn sealed_to_pb(sealed: &Sealed) -> pb::Sealed {
    pb::Sealed {
        key_id: sealed.key_id.clone(),
        nonce: sealed.nonce.clone().into(),
        ciphertext: sealed.ciphertext.clone().into(),
    }
}

fn sealed_from_pb(sealed: Option<pb::Sealed>) -> Result<Sealed, Unreadable> {
    let sealed = sealed.ok_or_else(|| unreadable("a secret is missing"))?;
    Ok(Sealed {
        key_id: sealed.key_id,
        nonce: sealed.nonce.into(),
        ciphertext: sealed.ciphertext.into(),
    })
}

fn signing_to_pb(secret: &SigningSecret) -> pb::SigningSecret {
    pb::SigningSecret {
        id: secret.id.clone(),
        secret: Some(sealed_to_pb(&secret.secret)),
        create_time: secret.create_time.as_millis(),
        expire_time: secret.expire_time.map_or(0, Timestamp::as_millis),
    }
}

fn signing_from_pb(secret: pb::SigningSecret) -> Result<SigningSecret, Unreadable> {
    Ok(SigningSecret {
        id: secret.id,
        secret: sealed_from_pb(secret.secret)?,
        create_time: Timestamp::from_millis(secret.create_time),
        expire_time: (secret.expire_time != 0).then(|| Timestamp::from_millis(secret.expire_time)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(byte: u8) -> Sealed {
        Sealed {
            key_id: "k".to_owned(),
            nonce: vec![byte; 24],
            ciphertext: vec![byte; 9],
        }
    }

    #[test]
    fn every_kind_of_authentication_is_read_as_it_was_written() {
        let secret = SigningSecret {
            id: "sec_1".to_owned(),
            secret: sealed(1),
            create_time: Timestamp::from_millis(1),
            expire_time: Some(Timestamp::from_millis(2)),
        };
        let custom = SignatureHeaders {
            id: "svix-id".to_owned(),
            ..SignatureHeaders::default()
        };
        let all = [
            Auth::None,
            Auth::Basic {
                username: "ada".to_owned(),
                password: sealed(2),
            },
            Auth::Signature {
                algorithm: Algorithm::HmacSha256,
                headers: SignatureHeaders::default(),
                secrets: vec![secret.clone()],
            },
            Auth::Signature {
                algorithm: Algorithm::Ed25519,
                headers: custom,
                secrets: vec![secret],
            },
            Auth::Bearer { token: sealed(3) },
            Auth::ApiKey {
                header: "x-api-key".to_owned(),
                value: sealed(4),
            },
            Auth::OAuth2(OAuth2 {
                token_url: "https://example.com/token".to_owned(),
                client_id: "ada".to_owned(),
                client_secret: sealed(5),
                scopes: vec!["a".to_owned(), "b".to_owned()],
                audience: "c".to_owned(),
                client_authentication: ClientAuthentication::Body,
            }),
            Auth::Mtls {
                certificate: "a chain".to_owned(),
                private_key: sealed(6),
            },
        ];
        for auth in all {
            assert_eq!(from_pb(to_pb(&auth)), Ok(auth));
        }
    }
}
