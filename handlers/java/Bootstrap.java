// A function in Java: Lambda's Runtime API with the JDK's HTTP client. Counts the records of the event.
// `java Bootstrap.java` runs it from its source; `javac` first makes the cold start shorter.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;

public class Bootstrap {
    private static final String API = "http://" + System.getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime/";
    private static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    static String handler(String event, String requestId) {
        int count = event.split("\"messageId\"", -1).length - 1;
        System.out.println(requestId + " has " + count + " records");
        return "{\"records\":" + count + "}";
    }

    public static void main(String[] arguments) throws Exception {
        while (true) {
            HttpResponse<String> next = CLIENT.send(to("invocation/next").GET().build(), BodyHandlers.ofString());
            String requestId = next.headers().firstValue("Lambda-Runtime-Aws-Request-Id").orElseThrow();
            try {
                post("invocation/" + requestId + "/response", handler(next.body(), requestId));
            } catch (RuntimeException error) {
                String type = error.getClass().getName();
                post("invocation/" + requestId + "/error", "{\"errorType\":\"" + type + "\",\"errorMessage\":\"\"}");
            }
        }
    }

    private static HttpRequest.Builder to(String path) {
        return HttpRequest.newBuilder(URI.create(API + path));
    }

    private static void post(String path, String body) throws Exception {
        CLIENT.send(to(path).POST(BodyPublishers.ofString(body)).build(), BodyHandlers.discarding());
    }
}
