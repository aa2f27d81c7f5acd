//! Secrets of a webhook's authentication: sealed for their place, or kept from the present state.

use postrider_common::model::auth::{Auth, OAuth2, place};
use postrider_common::model::webhook::Webhook;
use postrider_common::secret::{Sealed, SecretBytes};
use postrider_proto::v1;
use secrecy::ExposeSecret as _;

use super::auth_rules::DraftAuth;
use super::webhook_service::Webhooks;

impl Webhooks {
    /// The authentication as it is stored: new secrets sealed, others kept from `present`.
    pub(super) fn seal(&self, present: &Webhook, auth: DraftAuth) -> Auth {
        let seal = |secret: Option<SecretBytes>, kept: Option<&Sealed>, place: &str| match (secret, kept) {
            (None, Some(kept)) => kept.clone(),
            // The rules let no new method through without its secret.
            (secret, _) => self.seal_for(present, &secret.unwrap_or_else(|| Vec::new().into()), place),
        };
        match auth {
            DraftAuth::None => Auth::None,
            DraftAuth::Basic { username, password } => {
                let kept = if let Auth::Basic { password, .. } = &present.auth {
                    Some(password)
                } else {
                    None
                };
                Auth::Basic {
                    username,
                    password: seal(password, kept, place::PASSWORD),
                }
            }
            DraftAuth::Signature {
                algorithm,
                headers,
                secret,
            } => {
                let kept = if let Auth::Signature {
                    algorithm: before,
                    secrets,
                    ..
                } = &present.auth
                    && *before == algorithm
                    && secret.is_none()
                {
                    Some(secrets.clone())
                } else {
                    None
                };
                Auth::Signature {
                    algorithm,
                    headers,
                    secrets: kept.unwrap_or_else(|| vec![self.signing_secret(present, algorithm, secret)]),
                }
            }
            DraftAuth::Bearer { token } => {
                let kept = if let Auth::Bearer { token } = &present.auth {
                    Some(token)
                } else {
                    None
                };
                Auth::Bearer {
                    token: seal(token, kept, place::TOKEN),
                }
            }
            DraftAuth::ApiKey { header, value } => {
                let kept = if let Auth::ApiKey { value, .. } = &present.auth {
                    Some(value)
                } else {
                    None
                };
                Auth::ApiKey {
                    header,
                    value: seal(value, kept, place::API_KEY),
                }
            }
            DraftAuth::OAuth2(client) => {
                let kept = if let Auth::OAuth2(present) = &present.auth {
                    Some(&present.client_secret)
                } else {
                    None
                };
                Auth::OAuth2(OAuth2 {
                    token_url: client.token_url,
                    client_id: client.client_id,
                    client_secret: seal(client.client_secret, kept, place::CLIENT_SECRET),
                    scopes: client.scopes,
                    audience: client.audience,
                    client_authentication: client.client_authentication,
                })
            }
            DraftAuth::Mtls {
                certificate,
                private_key,
            } => {
                let kept = if let Auth::Mtls { private_key, .. } = &present.auth {
                    Some(private_key)
                } else {
                    None
                };
                Auth::Mtls {
                    certificate,
                    private_key: seal(private_key, kept, place::PRIVATE_KEY),
                }
            }
        }
    }

    /// Seals a secret of this webhook for its place.
    pub(super) fn seal_for(&self, webhook: &Webhook, secret: &SecretBytes, place: &str) -> Sealed {
        let context = Webhook::seal_context(&webhook.account, &webhook.uid, place);
        self.0.keyring.seal(secret.expose_secret(), &context, &*self.0.entropy)
    }
}

/// Takes the secrets out of a message.
pub(super) fn clear(auth: &mut v1::Auth) {
    match &mut auth.method {
        Some(v1::auth::Method::Basic(basic)) => basic.password.clear(),
        Some(v1::auth::Method::Signature(signature)) => signature.secret.clear(),
        Some(v1::auth::Method::Bearer(bearer)) => bearer.token.clear(),
        Some(v1::auth::Method::ApiKey(key)) => key.value.clear(),
        Some(v1::auth::Method::Oauth2(client)) => client.client_secret.clear(),
        Some(v1::auth::Method::Mtls(mtls)) => mtls.private_key.clear(),
        Some(v1::auth::Method::None(_)) | None => {}
    }
}
