// Tests who calls, by the known facts of a call, and what a stranger is told.
#include "server/service/auth/authenticator.h"

#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "server/base/sha256.h"

namespace hookline {
namespace {

using ::testing::HasSubstr;

class AuthenticatorTest : public ::testing::Test {
 protected:
  AuthenticatorTest() : path_(absl::StrCat(::testing::TempDir(), "authenticator-", getpid(), ".json")) {
    const Sha256 digest = Sha256Of("secret");
    std::ofstream(path_) << R"({"clients":[{"name":"alice","token_sha256":")"
                         << absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), digest.size()})
                         << R"(","roles":["read"]},{"name":"ci","san":"spiffe://lab/ci","roles":["capture"]},)"
                         << R"({"name":"local","uid":1000,"roles":["admin"]}]})";
    auto created = Authenticator::Create(path_);
    EXPECT_TRUE(created.ok()) << created.status();
    authenticator_ = *std::move(created);
  }
  ~AuthenticatorTest() override { unlink(path_.c_str()); }

  // Returns the client's name, or the code and the message with which it is refused.
  std::string Who(const CallFacts& call) const {
    const absl::StatusOr<AuthClient> client = authenticator_->Identify(call);
    return client.ok() ? client->identity.name : client.status().ToString();
  }

  static CallFacts WithToken(absl::string_view authorization, bool is_private) {
    CallFacts call;
    call.authorization = {authorization};
    call.is_private = is_private;
    return call;
  }

  const std::string path_;
  std::unique_ptr<Authenticator> authenticator_;
};

TEST_F(AuthenticatorTest, ATokenIsRefusedWhereOthersCanReadItAndSaysNotWhetherItIsRight) {
  EXPECT_EQ(Who(WithToken("Bearer secret", /*is_private=*/true)), "alice");
  const std::string refused = Who(WithToken("Bearer secret", /*is_private=*/false));
  EXPECT_THAT(refused,
              HasSubstr("UNAUTHENTICATED: authorization: tokens are refused on a connection that others can read"));
  EXPECT_EQ(Who(WithToken("Bearer wrong", /*is_private=*/false)), refused);
}

TEST_F(AuthenticatorTest, AWrongTokenIsRefusedWhateverElseWouldRecogniseItsSender) {
  CallFacts call = WithToken("Bearer wrong", /*is_private=*/true);
  call.unix_uid = 1000;
  call.sans = {"spiffe://lab/ci"};
  EXPECT_EQ(Who(call), "UNAUTHENTICATED: authorization: this token is not valid");
  call.authorization = {"Bearer secret", "Bearer secret"};
  EXPECT_THAT(Who(call), HasSubstr("more than once"));
  call.authorization = {"Basic c2VjcmV0"};
  EXPECT_THAT(Who(call), HasSubstr("only `Bearer TOKEN` is known"));
}

TEST_F(AuthenticatorTest, ACertificatesNameAndAUserOfAUnixSocketAreRecognised) {
  CallFacts call;
  call.sans = {"spiffe://lab/other", "spiffe://lab/ci"};
  EXPECT_EQ(Who(call), "ci");
  call.sans = {};
  call.unix_uid = 1000;
  EXPECT_EQ(Who(call), "local");
  call.unix_uid = 1001;
  EXPECT_THAT(Who(call), HasSubstr("UNAUTHENTICATED: no credential"));
}

TEST_F(AuthenticatorTest, AMethodThatTheTableDoesNotNameIsForNobody) {
  AuthClient admin;
  admin.roles = RoleSet::All();
  EXPECT_TRUE(CheckMethodRole(admin, "/hookline.v1.EvaluationService/Score").ok());
  EXPECT_EQ(CheckMethodRole(admin, "/hookline.v1.EvaluationService/New").code(), absl::StatusCode::kInternal);
  EXPECT_EQ(CheckEveryMethodHasARole({"hookline.v1.NoService"}).code(), absl::StatusCode::kInternal);
}

TEST(Authenticator, WithoutAFileTheAddressIsTheClientAndMayDoEverything) {
  const auto authenticator = Authenticator::Create("");
  ASSERT_TRUE(authenticator.ok());
  CallFacts call;
  call.address = "10.0.0.7";
  const absl::StatusOr<AuthClient> client = (*authenticator)->Identify(call);
  ASSERT_TRUE(client.ok());
  EXPECT_EQ(client->identity.name, "10.0.0.7");
  EXPECT_FALSE(client->identity.is_authenticated);
  EXPECT_TRUE(client->roles.Has(Role::kAdmin));
}

}  // namespace
}  // namespace hookline
