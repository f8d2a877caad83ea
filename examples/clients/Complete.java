// Complete a prompt with the JDK's HttpClient: java Complete.java
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

public class Complete {
    public static void main(String[] arguments) throws Exception {
        var environment = System.getenv();
        var base = environment.getOrDefault("AFTERWORD_URL", "http://127.0.0.1:8000/v1");
        var model = environment.getOrDefault("AFTERWORD_MODEL", "smollm2-135m-instruct");
        var key = environment.getOrDefault("AFTERWORD_KEY", "unused");
        var body = """
            {"model": "%s", "prompt": "Say this is a test", "max_tokens": 7, "temperature": 0}
            """.formatted(model);
        var request = HttpRequest.newBuilder(URI.create(base + "/completions"))
            .header("Content-Type", "application/json")
            .header("Authorization", "Bearer " + key)
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        if (answer.statusCode() != 200) {
            throw new IllegalStateException(answer.body());
        }
        // The JDK has no parser of JSON; a program of yours has one.
        System.out.println(answer.body());
    }
}
