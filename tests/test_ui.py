"""The page at /ui in a real browser without a window: seeds and classes are drawn, images classified."""

import base64
import shutil

import pytest
from conftest import ROOT, make_config
from service import Service, running

from gan_spark.data import images
from gan_spark.runs import registry
from gan_spark.training import driver

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not here"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    # Without a sandbox of its own, which a container's root cannot have; it sees loopback alone.
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(word)
    options.add_argument("--window-size=900,700")
    driver_service = webdriver.ChromeService(executable_path=CHROMEDRIVER)
    browser = webdriver.Chrome(options=options, service=driver_service)
    yield browser
    browser.quit()


def opened(browser, service: Service):
    """The page, once it knows what is served."""
    browser.get(f"http://127.0.0.1:{service.port}/")
    wait(browser, lambda _: browser.find_element(By.ID, "version").text)
    assert browser.current_url.endswith("/ui")
    return lambda name: browser.find_element(By.ID, name)


def wait(browser, condition):
    return WebDriverWait(browser, 60).until(condition)


def write(element, text: str) -> None:
    element.clear()
    element.send_keys(text)


def test_a_person_draws_seeds_and_classes(browser, spark, lake, digits, tmp_path):
    driver.train(spark, make_config(lake, "cgan", "shown", train={"steps": 2}))
    registry.promote(lake, "shown", "shown")
    with running(tmp_path, "--lake", lake, "--model", "shown") as service:
        at = opened(browser, service)
        assert at("name").text == "shown" and "run shown at step 2" in at("version").text
        assert at("generate").is_displayed() and not at("classify").is_displayed()
        write(at("seed"), "7")
        write(at("images"), "3")
        Select(at("label")).select_by_visible_text("4")
        at("generate").find_element(By.TAG_NAME, "button").click()
        pictures = wait(browser, lambda _: at("pictures").find_elements(By.TAG_NAME, "img"))
        drawn = service.json("/generate", {"seeds": [7, 8, 9], "label": "4"})["images"]
        sources = [picture.get_attribute("src") for picture in pictures]
        assert sources == [f"data:image/png;base64,{one['png']}" for one in drawn]
        assert all(picture.get_property("naturalWidth") == 16 for picture in pictures)
        write(at("images"), "65")
        browser.execute_script("document.getElementById('images').removeAttribute('max')")
        at("generate").find_element(By.TAG_NAME, "button").click()
        wait(browser, lambda _: "at most 64 a request" in at("problem").text)
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert all(name.startswith((f"http://127.0.0.1:{service.port}/", "data:")) for name in loaded)


@pytest.mark.long
def test_a_person_has_an_image_classified(browser, spark, lake, digits, tmp_path):
    driver.train(spark, make_config(lake, "lenet", "shown-classes", train={"steps": 2}))
    registry.promote(lake, "shown-classes", "shown-classes")
    picture = tmp_path / "picture.png"
    picture.write_bytes(
        images.encode_png(images.decode(ROOT.joinpath("docs/images/quickstart.png").read_bytes(), 30, 20, 1))
    )
    with running(tmp_path, "--lake", lake, "--model", "shown-classes") as service:
        at = opened(browser, service)
        assert at("classify").is_displayed() and not at("generate").is_displayed()
        at("data").send_keys(str(picture))
        at("classify").find_element(By.TAG_NAME, "button").click()
        lines = wait(browser, lambda _: at("predictions").find_elements(By.TAG_NAME, "li"))
        answer = service.json("/", {"data": base64.b64encode(picture.read_bytes()).decode()})["predictions"]
        assert [line.text for line in lines] == [f"{one['description']}: {one['probability']:g}%" for one in answer]
