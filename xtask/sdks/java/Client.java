import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.LinkedHashMap;
import java.util.Map;
import software.amazon.awssdk.auth.credentials.AwsCredentials;
import software.amazon.awssdk.auth.credentials.DefaultCredentialsProvider;
import software.amazon.awssdk.services.sts.StsClient;

/** The Java SDK v2 as a pod uses it; the protocol is in ../README.md. */
public final class Client {
    private static final DefaultCredentialsProvider PROVIDER = DefaultCredentialsProvider.builder().build();

    public static void main(String[] arguments) throws IOException {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = in.readLine()) != null; ) {
            long started = System.nanoTime();
            Map<String, String> answer = new LinkedHashMap<>();
            boolean ok = false;
            try {
                run(line.strip(), answer);
                ok = true;
            } catch (RuntimeException error) {
                answer.clear();
                answer.put("error", error.getClass().getSimpleName() + ": " + error.getMessage());
            }
            print(ok, answer, (System.nanoTime() - started) / 1_000_000);
        }
    }

    private static void run(String command, Map<String, String> answer) {
        if (!command.equals("get") && !command.equals("identity")) {
            throw new IllegalArgumentException("unknown command " + command);
        }
        AwsCredentials credentials = PROVIDER.resolveCredentials();
        answer.put("accessKeyId", credentials.accessKeyId());
        credentials.expirationTime().ifPresent(end -> answer.put("expiration", end.toString()));
        credentials.accountId().ifPresent(account -> answer.put("account", account));
        if (command.equals("identity")) {
            try (StsClient sts = StsClient.builder().credentialsProvider(PROVIDER).build()) {
                answer.put("arn", sts.getCallerIdentity().arn());
            }
        }
    }

    private static void print(boolean ok, Map<String, String> answer, long ms) {
        StringBuilder json = new StringBuilder("{\"ok\":").append(ok);
        answer.forEach((name, value) -> json.append(",\"").append(name).append("\":").append(quote(value)));
        System.out.println(json.append(",\"ms\":").append(ms).append('}'));
    }

    /** The SDK's own JSON library is shaded and not for others. */
    private static String quote(String text) {
        StringBuilder quoted = new StringBuilder("\"");
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                quoted.append('\\').append(c);
            } else if (c < ' ') {
                quoted.append(String.format("\\u%04x", (int) c));
            } else {
                quoted.append(c);
            }
        }
        return quoted.append('"').toString();
    }
}
