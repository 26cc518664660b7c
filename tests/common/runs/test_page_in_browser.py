"""The page in headless Chromium, as wide as a phone and as a desk: nothing fails, tables sort, nothing runs over.

It is left out where no Chromium is installed, unless `SUITE_BROWSER=required`, as in `.ci/run`.
"""

import os
import shutil

import pytest

from common.runs import page
from tests.helpers.runs import every_state

pytestmark = pytest.mark.slow
BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
PHONE, DESK = 390, 1400


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of runs in every state, or, of `SUITE_PAGE`, one that is there."""
    if os.environ.get("SUITE_PAGE"):
        return "file://" + os.path.abspath(os.environ["SUITE_PAGE"])
    root = every_state(tmp_path_factory.mktemp("runs"))
    page.write(root)
    return (root / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    if not (BROWSER and DRIVER):
        if os.environ.get("SUITE_BROWSER") == "required":
            pytest.fail("SUITE_BROWSER=required: chromium and chromedriver are not installed")
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def opened(browser, address, width=DESK, theme="light"):
    """The page, loaded anew."""
    from selenium.webdriver.support.wait import WebDriverWait

    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    browser.get("about:blank")
    browser.get(address)
    # A navigation may be said to be done while the blank page is still there.
    WebDriverWait(browser, 30).until(lambda driver: find(driver, "html.scripted"))
    return browser


def find(browser, selector):
    return browser.find_elements("css selector", selector)


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_fails_and_every_image_is_shown(browser, address, width, theme):
    opened(browser, address, width, theme)
    sizes = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth, i.alt])"
    )
    assert sizes and all(complete and natural > 0 and shown > 200 and alt for complete, natural, shown, alt in sizes)
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_is_wider_than_the_screen(browser, address, width):
    opened(browser, address, width)
    browser.find_element("id", "all-details").click()
    wide = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1] == width


def test_tables_sort_by_size_and_back(browser, address):
    opened(browser, address)
    browser.find_element("id", "all-details").click()
    tables = [
        table
        for table in find(browser, "table.measurements")
        if len(table.find_elements("css selector", "tbody tr")) > 2
    ]
    assert tables
    for table in tables[:4]:
        (heading,) = (h for h in table.find_elements("css selector", "thead th") if h.text.startswith("value"))
        column = browser.execute_script("return arguments[0].cellIndex", heading)
        for order, reverse in (("ascending", False), ("descending", True)):
            heading.find_element("css selector", "button").send_keys("\ue007")
            assert heading.get_attribute("aria-sort") == order
            cells = "return [...arguments[0].tBodies[0].rows].map(r => r.cells[arguments[1]].dataset.sort)"
            numbers = [float(text) for text in browser.execute_script(cells, table, column)]
            assert numbers == sorted(numbers, reverse=reverse)


def test_missing_cells_sort_last_either_way(browser, address):
    opened(browser, address)
    cells = "return [...arguments[0].tBodies[0].rows].map(r => r.cells[arguments[1]].dataset.sort)"
    for table in find(browser, "table.measurements"):
        names = [
            browser.execute_script("return arguments[0].textContent", h)
            for h in table.find_elements("css selector", "thead th")
        ]
        column, heading = names.index("n"), table.find_elements("css selector", "thead th")[names.index("n")]
        for _ in range(2):
            browser.execute_script("arguments[0].querySelector('button').click()", heading)
            texts = browser.execute_script(cells, table, column)
            known = [text for text in texts if text]
            assert texts == known + [""] * (len(texts) - len(known))


def test_an_app_is_shown_alone_and_by_its_address(browser, address):
    opened(browser, address)
    apps = [section.get_attribute("data-app") for section in find(browser, "section[data-app]")]
    for app in apps:
        browser.execute_script(f"document.querySelector('input[value={app}]').focus()")
        browser.switch_to.active_element.send_keys(" ")
        assert [s.get_attribute("data-app") for s in find(browser, "section[data-app]") if s.is_displayed()] == [app]
    opened(browser, f"{address}#app={apps[-1]}")
    assert [s.get_attribute("data-app") for s in find(browser, "section[data-app]") if s.is_displayed()] == apps[-1:]


def test_a_link_to_a_run_opens_it(browser, address):
    opened(browser, address)
    link = find(browser, "figcaption a")[-1]
    browser.execute_script("arguments[0].click()", link)
    target = browser.find_element("css selector", link.get_attribute("href").rpartition("/")[2].partition("html")[2])
    browser.execute_script("return new Promise(done => requestAnimationFrame(done))")
    assert target.get_attribute("open") is not None


def test_the_keyboard_reaches_what_the_mouse_does(browser, address):
    opened(browser, address)
    reached = set()
    for _ in range(40):
        browser.switch_to.active_element.send_keys("\ue004")
        active = browser.switch_to.active_element
        reached.add((active.tag_name, active.get_attribute("class") or active.get_attribute("id") or ""))
    assert (
        ("a", "skip") in reached
        and ("button", "theme") in reached
        and any(tag == "summary" or tag == "input" for tag, _ in reached)
    )


CONTRAST = """
const channel = v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const light = c => {
  const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
  return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
};
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (!c.endsWith(", 0)")) return c;
  }
};
const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
return [...document.querySelectorAll("p, a, th, td, button, label, summary, .state, dt, dd, pre, figcaption, caption")]
  .filter(e => e.textContent.trim() && e.checkVisibility())
  .map(e => [ratio(light(getComputedStyle(e).color), light(ground(e))), e.outerHTML.slice(0, 80)])
  .filter(([found]) => found < 4.5);
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, address, theme):
    """WCAG 2, level AA: 4.5 to 1."""
    opened(browser, address, theme=theme)
    browser.find_element("id", "all-details").click()
    assert browser.execute_script(CONTRAST) == []
    browser.find_element("id", "theme").click()
    assert browser.execute_script(CONTRAST) == []


def test_paper_shows_the_runs_too(browser, address):
    opened(browser, address)
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert all(each.get_attribute("open") is not None for each in find(browser, "details"))
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert not any(each.get_attribute("open") is not None for each in find(browser, "details"))
